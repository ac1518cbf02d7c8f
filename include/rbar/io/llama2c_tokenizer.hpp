// The tokenizer files of llama2.c (tokenizer.bin, tok512.bin): a SentencePiece BPE vocabulary with
// scores. The file is an int32 (longest token), then float score, int32 length and bytes of each token.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/io/file.hpp"
#include "rbar/io/pair_merger.hpp"
#include "rbar/io/utf8.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rbar {

// Tokens 0, 1, 2 are <unk>, <s>, </s>; 3 to 258 are the bytes "<0x00>" to "<0xFF>", for characters that
// have no token. decode(encode(text)) is `text` for any bytes.
class Llama2cTokenizer {
 public:
  static constexpr Token begin_of_text = 1, end_of_text = 2;

  // Errors: a file that is truncated, or has wrong lengths, scores that are no numbers, no byte tokens.
  explicit Llama2cTokenizer(const std::filesystem::path& path) {
    read_tokens(path);
    collect_merges();
  }

  Token vocab_size() const { return static_cast<Token>(bytes_.size()); }

  // <s>, then the text with a blank put before it, as the models were trained. Without `begin` the
  // blank stays, and decode will show it.
  std::vector<Token> encode(std::string_view text, bool begin = true) const {
    require(text.size() < (std::size_t{1} << 31) - 1, "Llama2cTokenizer::encode", "text", "less than 2 GiB",
            text.size());
    std::vector<Token> tokens;
    if (begin) tokens.push_back(begin_of_text);
    if (text.empty()) return tokens;
    PairMerger merger(merges_);
    add_character(" ", merger);
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t length = decode_utf8(text, i).length;
      add_character(text.substr(i, length), merger);
      i += length;
    }
    merger.merge_into(tokens);
    return tokens;
  }

  // <s> and </s> have no text, and a blank right after <s> is the one that encode put there.
  // Errors: an id outside the vocabulary.
  std::string decode(std::span<const Token> tokens) const {
    std::string text;
    Token previous = 0;
    for (const Token token : tokens) {
      require(token >= 0 && token < vocab_size(), "Llama2cTokenizer::decode", "token",
              "0 to " + std::to_string(vocab_size() - 1), token);
      std::string_view piece = bytes_[static_cast<std::size_t>(token)];
      if (previous == begin_of_text && piece.starts_with(' ')) piece.remove_prefix(1);
      if (token >= first_byte && token < first_byte + 256)
        text += static_cast<char>(static_cast<unsigned char>(token - first_byte));
      else if (token != begin_of_text && token != end_of_text)
        text += piece;
      previous = token;
    }
    return text;
  }

 private:
  static constexpr Token first_byte = 3;

  void add_character(std::string_view character, PairMerger& merger) const {
    if (const auto found = ids_.find(std::string(character)); found != ids_.end())
      merger.add(found->second);
    else
      for (const char c : character) merger.add(first_byte + static_cast<unsigned char>(c));
  }

  void read_tokens(const std::filesystem::path& path) {
    constexpr std::string_view operation = "Llama2cTokenizer";
    const MappedFile file(path);
    std::span<const std::byte> rest = file.bytes();
    const auto where = [&] { return path.string() + ": token " + std::to_string(bytes_.size()); };
    const auto read = [&](auto& value) {
      require(rest.size() >= sizeof value, operation, where(), std::to_string(sizeof value) + " more bytes",
              rest.size());
      std::memcpy(&value, rest.data(), sizeof value);
      rest = rest.subspan(sizeof value);
    };
    std::int32_t longest = 0;
    read(longest);
    require(longest > 0 && longest <= 1024, operation, path.string() + ": longest token", "1 to 1024", longest);
    while (!rest.empty()) {
      float score = 0;
      std::int32_t length = 0;
      read(score);
      read(length);
      require(std::isfinite(score), operation, where() + ": score", "a finite number", score);
      // The longest of the special tokens may exceed what the file says of the others.
      require(length >= 0 && length <= 1024 && static_cast<std::size_t>(length) <= rest.size(), operation,
              where() + ": length", "0 to " + std::to_string(std::min<std::size_t>(1024, rest.size())), length);
      const auto size = static_cast<std::size_t>(length);
      bytes_.emplace_back(reinterpret_cast<const char*>(rest.data()), size);
      scores_.push_back(score);
      rest = rest.subspan(size);
    }
    require(bytes_.size() >= 259, operation, path.string(), "at least 259 tokens", bytes_.size());
    for (std::size_t byte = 0; byte < 256; ++byte) {
      constexpr std::string_view digits = "0123456789ABCDEF";
      const std::string expected = std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">";
      require(bytes_[first_byte + byte] == expected, operation, path.string() + ": byte token", expected,
              detail::printable(bytes_[first_byte + byte]));
    }
    for (std::size_t i = 0; i < bytes_.size(); ++i) ids_.emplace(bytes_[i], static_cast<Token>(i));
  }

  // Two neighbours may merge if their bytes together are a token, the best score first: every way of
  // cutting a token into two tokens is a pair, ranked by the score of the token.
  void collect_merges() {
    std::map<float, std::uint32_t, std::greater<>> ranks;
    for (const float score : scores_) ranks.emplace(score, 0);
    std::uint32_t next = 0;
    for (auto& [score, rank] : ranks) rank = next++;
    struct Pair {
      Token left, right;
      MergeTable::Merge merge;
    };
    std::vector<Pair> pairs;
    for (const auto& [bytes, token] : ids_)
      for (std::size_t cut = 1; cut < bytes.size(); ++cut)
        if (const auto left = ids_.find(bytes.substr(0, cut)); left != ids_.end())
          if (const auto right = ids_.find(bytes.substr(cut)); right != ids_.end())
            pairs.push_back({left->second, right->second, {ranks[scores_[static_cast<std::size_t>(token)]], token}});
    merges_ = MergeTable(pairs.size());
    for (const auto& [left, right, merge] : pairs) merges_.insert(left, right, merge);
  }

  std::vector<std::string> bytes_;  // of each token
  std::vector<float> scores_;
  std::unordered_map<std::string, Token> ids_;
  MergeTable merges_;
};

}  // namespace rbar
