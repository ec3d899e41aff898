// The tree of a chat template: what the parser makes and the interpreter walks. Plain values,
// immutable once made. The parser bounds how deep trees are, for whoever walks them recursively.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja/value.h"

namespace quantd::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<const Expr>;

struct Expr {
  enum class Kind : uint8_t {
    kConstant,   // `value`
    kName,       // `name`
    kList,       // `operands`
    kTuple,      // `operands`
    kDict,       // `operands`: key, value, key, value, ...
    kAttribute,  // operands[0] . `name`
    kItem,       // operands[0] [ operands[1] ]
    kSlice,      // inside kItem: three operands, null where left out
    kCall,       // operands[0] ( the other operands, `keywords` )
    kFilter,     // operands[0] | `name` ( the other operands, `keywords` ); null in a filter block
    kTest,       // operands[0] is `name` ( the other operands, `keywords` )
    kUnary,      // `name`: "-", "+" or "not"
    kBinary,     // `name`: an arithmetic operator
    kAnd,        // of two operands
    kOr,
    kConcat,       // of all operands, as text
    kCompare,      // operands with `operators` between them
    kConditional,  // operands: condition, then, else (or null)
  };
  Kind kind = Kind::kConstant;
  int line = 1;
  int depth = 1;  // 1 more than the deepest operand
  std::string name;
  Value value;
  std::vector<ExprPtr> operands;
  std::vector<std::pair<std::string, ExprPtr>> keywords;
  std::vector<std::string> operators;
};

/// What is assigned to: a name, an attribute of a namespace, or several of these.
struct Target {
  std::string name;
  std::string attribute;
  std::vector<Target> parts;  // of a tuple
};

struct Statement;
using Body = std::vector<std::unique_ptr<const Statement>>;

struct MacroNode {
  struct Parameter {
    std::string name;
    ExprPtr otherwise;  // null without a default
  };
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool takes_varargs = false, takes_kwargs = false, takes_caller = false;  // the body names them
};

struct Statement {
  enum class Kind : uint8_t {
    kText,         // `text`
    kOutput,       // `expr`
    kIf,           // `branches`, else `otherwise`
    kFor,          // `target` in `expr`, where `condition`; `body`, else `otherwise`
    kSet,          // `target` = `expr`
    kSetBlock,     // `target` = `body`, through `filter`
    kMacro,        // `macro`
    kCallBlock,    // `expr` is the call, `macro` what it may call as caller()
    kFilterBlock,  // `body` through `filter`
    kWith,         // `assignments`, then `body`
    kScope,        // `body` with names of its own ({% generation %})
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 1;
  std::string text;
  ExprPtr expr;
  ExprPtr condition;
  ExprPtr filter;
  Target target;
  bool recursive = false;
  std::vector<std::pair<ExprPtr, Body>> branches;
  std::vector<std::pair<Target, ExprPtr>> assignments;
  std::unique_ptr<MacroNode> macro;
  Body body;
  Body otherwise;
};

}  // namespace quantd::jinja
