// Texts and the tokenizers that the command line offers.
#pragma once

#include "rbar/core/tensor.hpp"

#include <nlohmann/json_fwd.hpp>

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rbar_lm {

using rbar::Index;
using rbar::Token;

// Any of the library's tokenizers.
struct AnyTokenizer {
  std::string kind;  // bytes, chars or bpe
  Index vocabulary = 0;
  std::function<std::vector<Token>(std::string_view)> encode;
  std::function<std::string(std::span<const Token>)> decode;
  std::function<void(const std::filesystem::path& folder)> save;

  std::vector<std::string> pieces(std::span<const Token> tokens) const;  // each token alone, as text
};

std::string read_text(const std::string& path);

// kind: bytes, chars (of this text), or bpe with GPT-2's two files.
AnyTokenizer make_tokenizer(const std::string& kind, std::string_view text, const std::string& vocabulary,
                            const std::string& merges);
AnyTokenizer load_tokenizer(const std::filesystem::path& folder);

}  // namespace rbar_lm
