#!/usr/bin/env python3
"""Records what transformers renders of chat templates, for tests/engine/text/chat_template_test.cc.

    build/venv/bin/python tests/reference/chat_template_cases.py [--check]

Writes tests/data/chat_templates.json, or checks that it is what would be written. The templates are our own: they have the constructs of those
that come with Llama 2, 3 and 3.1, Mistral, Qwen 2.5 and 3, Gemma, Phi and ChatML models, and of the
Jinja language what a template might use. Needs the PyPI packages `transformers` and `jinja2`.
"""

import datetime
import itertools
import json
import pathlib
import sys

from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/data/chat_templates.json"
NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CHAT = [{"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Who was Ada? "},
        {"role": "assistant", "content": "A mathematician.\n"},
        {"role": "user", "content": "\tWhen \"born\"? <b>&'ü漢😀"}]
NO_SYSTEM = CHAT[1:]
ONE = [{"role": "user", "content": "Hi"}]
TWO_USERS = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a \"city\", in °C <now>",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Its name"},
        "days": {"type": "integer", "default": 3, "minimum": 1.5}}, "required": ["city"]}}}]
TOOL_CHAT = [{"role": "user", "content": "Weather in Zürich?"},
             {"role": "assistant", "content": None, "tool_calls": [
                 {"id": "abc123def", "type": "function",
                  "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}}]},
             {"role": "tool", "name": "get_weather", "tool_call_id": "abc123def",
              "content": "{\"c\": 21.5}"},
             {"role": "tool", "name": "get_weather", "content": "sunny"},
             {"role": "assistant", "content": "21.5 °C."},
             {"role": "user", "content": "Thanks"}]
THINKING = [{"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n4"},
            {"role": "user", "content": "And 3+3?"},
            {"role": "assistant", "reasoning_content": "Still easy.", "content": "6"},
            {"role": "user", "content": "Good"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"},
                                      {"type": "text", "text": "this"}]}]

MODELS = {
    "llama2": r"""
{%- if messages[0]['role'] == 'system' %}
    {%- set rest = messages[1:] %}
    {%- set intro = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}
{%- else %}
    {%- set rest = messages %}
    {%- set intro = '' %}
{%- endif %}
{%- for m in rest %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns: user, assistant, user, ...') }}
    {%- endif %}
    {%- if loop.index0 == 0 %}{% set text = intro + m['content'] %}{% else %}{% set text = m['content'] %}{% endif %}
    {%- if m['role'] == 'user' %}
        {{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
    {%- elif m['role'] == 'assistant' %}
        {{- ' ' ~ text.strip() ~ ' ' ~ eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "llama3": "{% set loop_messages = messages %}{% for m in loop_messages %}"
              "{% set text = '<|begin_role|>' + m['role'] + '<|end_role|>\n\n'+ m['content'] | trim + '<|eot|>' %}"
              "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|begin_role|>assistant<|end_role|>\n\n' }}{% endif %}",
    "llama31": r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|role|>system<|/role|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message|default(false) %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|role|>' + message['role'] + '<|/role|>\n\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|role|>assistant<|/role|>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|role|>ipython<|/role|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|role|>assistant<|/role|>\n\n' }}
{%- endif %}
""",
    "mistral": r"""{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("user and assistant take turns") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("ids have nine letters") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[RESULT] {"content": ' + content|string + ", " }}
        {{- '"id": "' + message.tool_call_id|default('none') + '"}[/RESULT]' }}
    {%- else %}
        {{- raise_exception("an unknown role: " + message['role']) }}
    {%- endif %}
{%- endfor %}
""",
    "qwen25": r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You help.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nAnswer {\"name\": <function-name>, \"arguments\": <args-json-object>}<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou help.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "qwen3": r"""{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role in ("user", "system") %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index or loop.last or (not loop.last and reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or (loop.nextitem.role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""",
    "gemma": r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
""",
    "phi": "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
           "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
           "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
           "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "chatml": """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
<|im_start|>system
You help.<|im_end|>
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' }}
  {% generation %}{{ message['content'] + '<|im_end|>' + '\\n' }}{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}
""",
}

# One line of the language each, rendered with the first chat.
LANGUAGE = r"""
{{ 1 + 2 * 3 ** 2 - 7 // 2 % 3 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 1e3 }} {{ 1_000 }}
{{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e15 }} {{ 1e-5 }} {{ 0.0001 }} {{ 3.0 }} {{ 1.5e300 * 1e10 }} {{ 10 % 3.5 }} {{ -1.5 // 1 }}
{{ true }} {{ none }} {{ [1, 'a', none, True, 1.0] }} {{ (1,) }} {{ () }} {{ {'a': [1, {'b': "it's"}], 2: 'x"y\n'} }}
{{ undefined_name }}|{{ messages[99] }}|{{ messages[0].nothing }}|{{ messages[0]['nothing'] is defined }}
{{ 'a' ~ 1 ~ none ~ 2.5 ~ true }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }} {{ 'x' 'y' "z" }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' in 'cat' }} {{ 2 not in [1, 3] }} {{ 'role' in messages[0] }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }}
{{ not true and false or 1 }} {{ '' or 'x' }} {{ 0 and 1 }} {{ 'y' if 0 else 'n' }} {{ 'only' if false }}| {{ 1 if true else 2 if true else 3 }}
{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abcdef'[::2] }} {{ [1,2,3,4][1:] }} {{ [1,2,3,4][:-1] }} {{ [1,2,3][::-1] }} {{ 'äöü漢😀'[1:4] }} {{ [1,2,3][5:] }}
{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xya'.lstrip('yx') }}|{{ 'a\n\n'.rstrip('\n') }}|{{ ' é '|trim }}|{{ '\u00a0\u2003x\u200b'|trim }}|
{{ 'a,b,,c'.split(',') }} {{ ' a  b c '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.rsplit(' ', 1) }} {{ '  a b  c '.rsplit(none, 1) }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ 'abc'.partition('b') }} {{ 'abcbd'.rpartition('b') }} {{ 'abc'.partition('x') }}
{{ 'Hello'.startswith('He') }} {{ 'Hello'.endswith(('x', 'lo')) }} {{ 'Hello'.find('l') }} {{ 'Hello'.rfind('l') }} {{ 'Hello'.find('z') }} {{ 'Hello'.count('l') }} {{ 'Hello'.index('e') }} {{ 'aXbXc'.replace('X', '--', 1) }} {{ 'abc'.replace('', '.') }}
{{ 'hELLO wORLD'.title() }} {{ 'hELLO wORLD'.capitalize() }} {{ 'ÄöÜß'.upper() }} {{ 'ÄÖÜ'.lower() }} {{ 'aB'.swapcase() }} {{ "they're bill's".title() }} {{ "they're (bill's) x-y"|title }} {{ 'straße'|capitalize }}
{{ '12'.isdigit() }} {{ '1a'.isalnum() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab1'.islower() }} {{ ''.isdigit() }} {{ '٣'.isdigit() }}
{{ '-'.join(['a', 'b']) }} {{ '{} and {}'.format(1, 'x') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{k}!'.format(k=3) }} {{ '{{}}'.format() }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3, '.') }}
{{ [3, 1, 2]|sort }} {{ ['b', 'A', 'c']|sort }} {{ ['b', 'A']|sort(case_sensitive=true) }} {{ [1,2,3]|sort(reverse=true) }} {{ [1,2,3]|reverse|list }} {{ 'abc'|reverse }} {{ [1,1,2,'a','A']|unique|list }} {{ {'b': 1, 'A': 2}|dictsort }} {{ {'b': 1, 'a': 2}|dictsort(by='value') }}
{{ messages|map(attribute='role')|join(', ') }} {{ ['a', 'b']|map('upper')|list }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'in', ['user', 'system'])|map(attribute='content')|list }} {{ [1,2,3,4]|select('odd')|list }} {{ [0,1,none,'']|select|list }} {{ [1,2,3]|reject('gt', 2)|list }} {{ [{'a': {'b': 1}}, {}]|map(attribute='a.b', default='?')|list }}
{{ [1,2,3]|first }} {{ [1,2,3]|last }} {{ []|first }}| {{ 'abc'|first }} {{ [1,2,3]|sum }} {{ [1,2,3]|max }} {{ ['b','a']|min }} {{ 'äbc'|length }} {{ {'a': 1}|length }} {{ [1,2]|count }} {{ 'abc'|list }} {{ {'a': 1, 'b': 2}|list }}
{{ '5'|int + 1 }} {{ 'x'|int }} {{ 'x'|int(7) }} {{ '3.9'|int }} {{ 2.7|int }} {{ '2.5'|float }} {{ 'x'|float }} {{ 3|string + '!' }} {{ -3|abs }} {{ 2.5|round }} {{ 3.14159|round(2) }} {{ 2.1|round(0, 'ceil') }} {{ 7|round }}
{{ none|default('d') }} {{ nothing|default('d') }} {{ ''|default('d', true) }} {{ nothing|d(3) }} {{ nothing|default }}| {{ messages[0].x|default('no x') }} {{ (messages|first).role }} {{ messages[0]|attr('role') }}|
{{ {'a': 1}.items()|list }} {{ {'a': 1}|items|list }} {{ {'a': 1, 'b': 2}.keys()|list }} {{ {'a': 1}.values()|list }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('z') }} {{ {'a': 1}.get('z', 5) }} {{ dict(a=1, b='x') }} {{ {'items': 3}.items is callable }} {{ {'items': 3}['items'] }}
{{ '<a href="x">&\'</a>'|e }} {{ '<b>'|safe }} {{ 'a<b'|escape }}
{{ "line1\nline2\n\nline4"|indent }}|{{ "a\nb"|indent(2, true) }}|{{ "a\n\nb"|indent(width=3, blank=true) }}|
{{ messages[0]|tojson }} {{ {'ü': '\u2028<>\'"\\/\x7f\x01', 'n': none, 'f': 1.0, 'e': 1e20, 't': true, 'l': [], 'd': {}}|tojson }} {{ [1,[2,{'a':3}]]|tojson(indent=2) }} {{ {'b':1,'a':2}|tojson(sort_keys=true) }} {{ {'ü': '😀'}|tojson(ensure_ascii=true) }} {{ [1,2]|tojson(separators=(',', ':')) }} {{ {1: 2, none: 3, true: 4}|tojson }} {{ (1, 2)|tojson }}
{{ 1 is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is integer }} {{ true is boolean }} {{ 'a' is string }} {{ [] is sequence }} {{ {} is mapping }} {{ {} is iterable }} {{ 1 is iterable }} {{ none is none }} {{ x is undefined }} {{ x is not defined }} {{ 4 is even }} {{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 'a' is in ['a'] }} {{ 2 is gt 1 }} {{ 'A' is upper }} {{ false is false }} {{ 1 is true }} {{ 1 is eq 1 }} {{ none is sameas none }} {{ range is callable }} {{ x is iterable }}
{{ range(5)|list }} {{ range(2, 10, 3)|list }} {{ range(3, 0, -1)|list }} {{ range(0)|list }}
{% for x in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.previtem|default('-') }}{{ loop.nextitem|default('-') }}{{ loop.cycle('a', 'b') }};{% endfor %}
{% for x in [] %}x{% else %}empty{% endfor %} {% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }},{% endfor %} {% for x in range(10) if x % 2 %}{{ loop.index }}:{{ x }} {% endfor %} {% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %} {% for c in 'héy' %}{{ c }}.{% endfor %} {% for x in nothing %}x{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %} {% for x in [1,2] %}{% for y in [1,2] %}{{ loop.index }}{{ x }}{{ y }}{% if y == 1 %}{% continue %}{% endif %};{% endfor %}{% endfor %}
{% for item in [{'n': 1, 'c': [{'n': 2, 'c': []}]}, {'n': 3, 'c': []}] recursive %}{{ item.n }}{{ loop.depth }}({{ loop(item.c) }}){% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = i * 10 %}{{ x }}{% endfor %}{{ x }} {% set ns = namespace(n=0, s='') %}{% for i in [1,2,3] %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}{{ ns.s }} {% if true %}{% set y = 'in if' %}{% endif %}{{ y }} {% set a, b = 1, [2] %}{{ a }}{{ b }} {% set t = 1, 2 %}{{ t }}
{% set block %}text {{ 1 + 1 }} <b>{% endset %}{{ block }}|{{ block|length }} {% set up | upper %}shout{% endset %}{{ up }} {% filter upper|replace('A', '4') %}banana {{ 'x' }}{% endfilter %} {% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}
{% macro m(a, b=2, c='x') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, c=3) }}{{ m(1, 2, 3)|length }}{{ m() }} {% macro v(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ v(1, 2, 3, k=4) }} {% macro outer() %}<{{ caller('arg') }}>{% endmacro %}{% call(x) outer() %}called {{ x }}{% endcall %} {% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }} {% macro g() %}{{ later }}{% endmacro %}{% set later = 'late' %}{{ g() }} {{ m.name }}
{% raw %}{{ not this }} {% nor this %}{% endraw %} {# a comment {{ x }} #}after{#- stripped -#}   x
{{- ' tight ' -}}   {%- if true -%}   a   {%- endif -%}   b
{{ 'a\tb\\n\x41\u00e9\'' }} {{ "d\"q" }} {{ '\q' }} {{ '\101' }}
{{ messages[0].role.upper().lower()[0:3] ~ (messages|length)|string }} {{ (1, 2)[0] }} {{ [[1, 2], [3]][0][1] }} {{ {'a': {'b': 'c'}}.a.b }} {{ {'a': 1}['a'] }} {{ {1: 'one'}[1] }} {{ messages.0.role }}
{{ strftime_now('%d %B %Y, %H:%M:%S %j %a') }} {{ bos_token }}{{ eos_token }}{{ pad_token }} {{ tools is none }} {{ documents is none }} {{ tools is defined }}
{{ [1, 2, 3] == [1, 2, 3] }} {{ {'a': 1} == {'a': 1} }} {{ (1, 2) == [1, 2] }} {{ [1, 2] < [1, 3] }} {{ messages[1] == messages[-3] }} {{ none == false }} {{ x == y }}
{{ [1, 2, 3].index(2) }} {{ [1, 1].count(1) }} {{ ['a'] + ['b'] }} {{ [1,2,3,4,5]|batch(2)|list }} {{ [1,2,3]|batch(2, 0)|list }} {{ ['x', 'y']|join }} {{ [{'n': 1}, {'n': 2}]|sum(attribute='n') }} {{ [{'n': 2}, {'n': 1}]|sort(attribute='n') }} {{ [1, 2]|join('-') }}
{{ 'a' if messages[0].role == 'system' and messages|length > 1 else 'b' }}{{ not messages[0].role == 'x' }}{{ -1|abs }}{{ (-1)|abs }}{{ '%5d'|length }}{{ 1 if not none }}
""".strip("\n").split("\n")

WHITESPACE = [
    "  {% if true %}\n  a\n  {% endif %}\n  b\n",
    "a  {%- if true %}\nb{% endif -%}\n\n c",
    "{% if true %}\n\nx\n{% endif %}\n\ny\n\n",
    "x {% if true %} y {% endif %} z",
    "  {%+ if true %}kept{% endif %}\n",
    "{% if true +%}\nkept newline{% endif %}",
    "a\n  {{ 'x' }}\n  {{- 'y' }}\n {{ 'z' -}} \n end",
    "a\n   {# comment #}\nb {# c #} \n c\n {#- d -#} \n e",
    "{% for i in [1, 2] %}\n  {% if i == 1 %}\n    one\n  {% else %}\n    other\n  {% endif %}\n{% endfor %}\n",
    "\t{% set x = 1 %}\t\n\t{{ x }}\t\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\nend",
    "a {%- raw -%}  x  {%- endraw -%}  b",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ '}}' }}{{ '%}' }}{{'{{'}}",
    "\r\na\r\nb\rc\n",
    "{{ 'x' }}\n",
    "\n\n{% if true %}\n{% if true %}\n x\n{% endif %}\n{% endif %}\n",
    "{%if true%}a{%endif%}{{'b'}}{#c#}",
    "   {%- for x in 'ab' -%}  {{ x }}  {%- endfor +%}\n  t",
]

ERRORS = [
    "{{ raise_exception('no: ' ~ messages[0].role) }}", "{{ nothing.attribute }}", "{{ nothing + 1 }}",
    "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ messages[0].append(1) }}", "{{ [].append(1) }}", "{{ 'a'.nope() }}",
    "{{ none() }}", "{{ nothing() }}", "{{ 1 < 'a' }}", "{{ {}|tojson(indent=2)|length + 'x' }}",
    "{{ range(200000) }}", "{% for a, b in [[1]] %}{% endfor %}", "{{ nothing|tojson }}", "{{ 5|length }}",
    "{% set x.y = 1 %}", "{{ 'a' in 5 }}", "{{ 'a'.index('z') }}", "{% for x in 5 %}{% endfor %}",
    "{{ {}.pop('a') }}", "{{ namespace(_x=1) }}", "{{ ''.__class__.__mro__ }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{{ {[]: 1} }}", "{{ 'a'|nofilter }}", "{{ 1 is notest }}",
    "{% if %}", "{{ 1 + }}", "{% endfor %}", "{% for x in y %}", "{{ 'open }}", "{{ (1, 2 }}", "{% nonsense %}",
    "{{ a b }}", "{% set 1 = 2 %}", "{{", "{% raw %} x", "{# open",
]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, chat, tools, add, variables):
    """The text, or None where transformers raises."""
    chat_template_utils.datetime = Clock
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[[{k: v for k, v in m.items() if v is not None} for m in chat]], tools=tools,
            chat_template=template, add_generation_prompt=add, **(TOKENS | variables))
        return rendered[0]
    except Exception:  # noqa: BLE001: whatever Jinja or Python raises
        return None


def cases():
    chats = {"chat": CHAT, "no_system": NO_SYSTEM, "one": ONE, "two_users": TWO_USERS, "tools": TOOL_CHAT,
             "thinking": THINKING, "parts": PARTS}
    for (name, template), (chat_name, chat), tools, add in itertools.product(
            MODELS.items(), chats.items(), (None, TOOLS), (False, True)):
        yield {"name": f"{name}/{chat_name}{'/with_tools' if tools else ''}", "template": name,
               "messages": chat_name, "tools": tools is not None, "add_generation_prompt": add,
               "variables": {}, "expected": render(template, chat, tools, add, {})}
    yield {"name": "qwen3/no_thinking", "template": "qwen3", "messages": "one", "tools": False,
           "add_generation_prompt": True, "variables": {"enable_thinking": False},
           "expected": render(MODELS["qwen3"], ONE, None, True, {"enable_thinking": False})}
    yield {"name": "llama31/date", "template": "llama31", "messages": "one", "tools": False,
           "add_generation_prompt": True, "variables": {"date_string": "1 Jan 2000", "bos_token": "<B>"},
           "expected": render(MODELS["llama31"], ONE, None, True,
                              {"date_string": "1 Jan 2000", "bos_token": "<B>"})}


def snippets():
    for kind, texts in (("language", LANGUAGE), ("whitespace", WHITESPACE), ("error", ERRORS)):
        for number, text in enumerate(texts):
            expected = render(text, CHAT, None, True, {})
            assert (expected is None) == (kind == "error"), (kind, text, expected)
            yield {"name": f"{kind} {number}", "source": text, "expected": expected}


def main():
    data = {
        "tokens": TOKENS, "templates": MODELS, "tools": TOOLS,
        "now": [NOW.year, NOW.month, NOW.day, NOW.hour, NOW.minute, NOW.second, NOW.weekday(),
                NOW.timetuple().tm_yday],
        "messages": {"chat": CHAT, "no_system": NO_SYSTEM, "one": ONE, "two_users": TWO_USERS,
                     "tools": TOOL_CHAT, "thinking": THINKING, "parts": PARTS},
        "cases": list(cases()), "snippets": list(snippets()),
    }
    text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        same = OUT.read_text(encoding="utf-8") == text
        print(f"{OUT.relative_to(ROOT)}: {'as transformers renders' if same else 'DIFFERS'}")
        return 0 if same else 1
    OUT.write_text(text, encoding="utf-8")
    rendered = sum(case["expected"] is not None for case in data["cases"])
    print(f"{OUT.relative_to(ROOT)}: {len(data['cases'])} cases, {rendered} of them render, "
          f"{len(data['snippets'])} snippets, {OUT.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
