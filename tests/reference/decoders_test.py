"""What no fixture holds: other spellings of the same bytes, which must decode to the same values.

    python tests/reference/decoders_test.py
"""
import pathlib
import unittest

import torch

import decoders

MODELS = pathlib.Path(__file__).resolve().parent.parent / "data" / "models"
MODULE = "model.layers.0.self_attn.k_proj"


class Spellings(unittest.TestCase):
    def same(self, a, b):
        self.assertTrue(torch.equal(a, b))

    def test_hqq_codes_under_a_float_dtype(self):
        for fixture, dtype in (("hqq4_axis1", torch.bfloat16), ("hqq3_axis1", torch.float32)):
            t, _, _ = decoders.read_checkpoint(MODELS / fixture)
            expected = decoders.hqq(t, MODULE)
            t[MODULE + ".W_q"] = t[MODULE + ".W_q"].view(dtype)
            t[MODULE + ".view_as_float"] = torch.tensor(1, dtype=torch.uint8)
            self.same(decoders.hqq(t, MODULE), expected)

    def test_e8m0_scales_as_bytes(self):
        t, _, config = decoders.read_checkpoint(MODELS / "fp8_block_ue8m0")
        name = MODULE + ".weight_scale_inv"
        self.assertEqual(t[name].dtype, torch.float8_e8m0fnu)
        expected = decoders.fp8(t, MODULE, config)
        t[name] = t[name].view(torch.uint8)
        self.same(decoders.fp8(t, MODULE, config), expected)

    def test_fp8_with_one_scale(self):
        t = {"m.weight": torch.tensor([[1.0, -2.0]]).to(torch.float8_e4m3fn),
             "m.weight_scale_inv": torch.tensor(0.5)}
        self.same(decoders.fp8(t, "m", {}), torch.tensor([[0.5, -1.0]]))

    def test_fp8_blocks_that_are_ragged_both_ways(self):
        t = {"m.weight": torch.ones(3, 5).to(torch.float8_e4m3fn),
             "m.weight_scale_inv": torch.arange(6.0).reshape(2, 3)}
        rows = [0.0, 0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 4.0, 4.0, 5.0]
        self.same(decoders.fp8(t, "m", {"weight_block_size": [2, 2]}),
                  torch.tensor([rows[0], rows[0], rows[1]]))

    def test_gptq_without_g_idx_has_groups_in_order(self):
        t, _, config = decoders.read_checkpoint(MODELS / "gptq4_sym")
        args = config["bits"], config["group_size"], decoders.gptq_is_v1(config)
        expected = decoders.gptq(t, MODULE, *args)
        del t[MODULE + ".g_idx"]
        self.same(decoders.gptq(t, MODULE, *args), expected)

    def test_autoround_extra_config_names_a_module(self):
        t, _, config = decoders.read_checkpoint(MODELS / "autoround4_gptq")
        expected = decoders.autoround(t, MODULE, config)
        own = {MODULE: {"bits": config["bits"]}}
        config = {**config, "bits": 8, "extra_config": own, "packing_format": "auto_round:gptq"}
        self.same(decoders.autoround(t, MODULE, config), expected)


class CompressedTensorsTargets(unittest.TestCase):
    def group(self, module, ignore=()):
        groups = {"class": ["Linear"], "second": ["re:.*b_proj"], "first": ["re:.*[ab]_proj"],
                  "name": ["x.a_proj"], "prefix": ["re:y"]}
        config = {"ignore": list(ignore),
                  "config_groups": {name: {"targets": t, "it": name} for name, t in groups.items()}}
        found = decoders.ct_group(module, config)
        return found and found["it"]

    def test_name_before_regex_before_class(self):
        self.assertEqual(self.group("x.a_proj"), "name")
        self.assertEqual(self.group("z.a_proj"), "first")
        self.assertEqual(self.group("z.c_proj"), "class")

    def test_of_two_regexes_the_first_in_order(self):
        self.assertEqual(self.group("x.b_proj"), "first")  # "re:.*[" sorts before "re:.*b"

    def test_a_regex_matches_from_the_start_only(self):
        self.assertEqual(self.group("y.z"), "prefix")
        self.assertEqual(self.group("z.y"), "class")

    def test_ignored_by_name_or_regex(self):
        self.assertIsNone(self.group("x.a_proj", ["x.a_proj"]))
        self.assertIsNone(self.group("x.a_proj", ["re:.*a_proj$"]))


if __name__ == "__main__":
    unittest.main()
