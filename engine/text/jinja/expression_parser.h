// ExpressionParser: the expressions of a chat template, and the stream of tokens that the parser of
// statements shares with it. See parser.h.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/lexer.h"
#include "kernels/status.h"

namespace quantd::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  using Kind = Token::Kind;

  // Brackets, statements and chains of operators in each other: each may take a kilobyte of stack
  // when the tree is walked.
  static constexpr int kMaxNesting = 100;
  static constexpr int kMaxDepth = 400;

  /// Counts what is open, for the length of its life.
  class Nested {
   public:
    explicit Nested(int* depth) : depth_(depth) { ++*depth_; }
    ~Nested() { --*depth_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;

   private:
    int* depth_;
  };
  absl::Status CheckNesting() const;

  const Token& Peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  void Skip() { at_ += at_ + 1 < tokens_.size() ? 1 : 0; }
  bool IsOperator(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Kind::kOperator && Peek(ahead).text == text;
  }
  bool IsName(std::string_view text, size_t ahead = 0) const {
    return Peek(ahead).kind == Kind::kName && Peek(ahead).text == text;
  }
  bool TakeOperator(std::string_view text);
  bool TakeName(std::string_view text);
  absl::Status Expect(Kind kind, std::string_view what);
  absl::Status ExpectOperator(std::string_view text);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Fail(std::string_view what) const;

  /// An expression; without `with_condition` no "a if b else c" at its top.
  absl::StatusOr<ExprPtr> Expression(bool with_condition = true);
  /// One expression, or several with commas between them, which are a tuple.
  absl::StatusOr<ExprPtr> Tuple(bool with_condition = true);
  /// The filters after an expression: "| a | b(c)"; `first`: the "|" before the first is left out.
  absl::StatusOr<ExprPtr> Filters(ExprPtr operand, bool first);
  /// "(a, b=c)", whose "(" is next.
  absl::Status Arguments(Expr* call);

  /// Index of the next token, and whether a name stands between two such places.
  size_t position() const { return at_; }
  bool Names(size_t begin, std::string_view name) const;

  int nesting_ = 0;

 private:
  Expr New(Expr::Kind kind) const;
  absl::StatusOr<ExprPtr> Finish(Expr expr) const;
  absl::StatusOr<ExprPtr> Unary(bool with_filter);
  absl::StatusOr<ExprPtr> Or();
  absl::StatusOr<ExprPtr> And();
  absl::StatusOr<ExprPtr> Not();
  absl::StatusOr<ExprPtr> Comparison();
  absl::StatusOr<ExprPtr> Sum();
  absl::StatusOr<ExprPtr> Concat();
  absl::StatusOr<ExprPtr> Product();
  absl::StatusOr<ExprPtr> Power();
  absl::StatusOr<ExprPtr> Primary();
  absl::StatusOr<ExprPtr> Postfix(ExprPtr operand);
  absl::StatusOr<ExprPtr> Subscript(ExprPtr operand);
  absl::StatusOr<ExprPtr> Test(ExprPtr operand);
  absl::StatusOr<ExprPtr> FiltersAndTests(ExprPtr operand);
  absl::StatusOr<ExprPtr> ListOrDict();
  /// left-associative operators, whose operands `operand` reads.
  absl::StatusOr<ExprPtr> Chain(std::initializer_list<std::string_view> operators,
                                absl::StatusOr<ExprPtr> (ExpressionParser::*operand)());

  std::vector<Token> tokens_;
  size_t at_ = 0;
};

}  // namespace quantd::jinja
