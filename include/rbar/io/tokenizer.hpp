// Text to tokens and back: bytes, characters, GPT-2's BPE, llama2.c's SentencePiece BPE.
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/io/bpe_tokenizer.hpp"
#include "rbar/io/json.hpp"
#include "rbar/io/llama2c_tokenizer.hpp"
#include "rbar/io/utf8.hpp"

#include <algorithm>
#include <concepts>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace rbar {

template <class T>
concept Tokenizer = requires(const T tokenizer, std::string_view text, std::span<const Token> tokens) {
  { tokenizer.encode(text) } -> std::same_as<std::vector<Token>>;
  { tokenizer.decode(tokens) } -> std::same_as<std::string>;
  { tokenizer.vocab_size() } -> std::same_as<Token>;
};

// A token is a byte. Nothing to learn or to save, and nothing that cannot be written.
struct ByteTokenizer {
  Token vocab_size() const { return 256; }
  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens(text.size());
    std::transform(text.begin(), text.end(), tokens.begin(), [](char c) { return static_cast<unsigned char>(c); });
    return tokens;
  }
  // Errors: an id outside 0 to 255.
  std::string decode(std::span<const Token> tokens) const {
    std::string text;
    text.reserve(tokens.size());
    for (const Token token : tokens) {
      require(token >= 0 && token < 256, "ByteTokenizer::decode", "token", "0 to 255", token);
      text += static_cast<char>(static_cast<unsigned char>(token));
    }
    return text;
  }
};

// A token is a Unicode character: the characters of a text, in order of their code points.
class CharTokenizer {
 public:
  CharTokenizer() = default;
  // The vocabulary of this text. Errors: text that is not valid UTF-8 (a ByteTokenizer takes that).
  explicit CharTokenizer(std::string_view text) {
    for_each_character("CharTokenizer", text, [&](std::size_t, char32_t character) {
      const auto place = std::lower_bound(characters_.begin(), characters_.end(), character);
      if (place == characters_.end() || *place != character) characters_.insert(place, character);
    });
  }

  Token vocab_size() const { return static_cast<Token>(characters_.size()); }

  // Errors: a character that is not in the vocabulary, invalid UTF-8.
  std::vector<Token> encode(std::string_view text) const {
    std::vector<Token> tokens;
    tokens.reserve(text.size());
    for_each_character("CharTokenizer::encode", text, [&](std::size_t position, char32_t character) {
      const auto found = std::lower_bound(characters_.begin(), characters_.end(), character);
      if (found == characters_.end() || *found != character) {
        std::string shown;
        append_utf8(shown, character);
        throw Error("CharTokenizer::encode", "byte " + std::to_string(position),
                    "one of the vocabulary's " + std::to_string(characters_.size()) + " characters",
                    "'" + detail::printable(shown) + "'");
      }
      tokens.push_back(static_cast<Token>(found - characters_.begin()));
    });
    return tokens;
  }
  // Errors: an id outside the vocabulary.
  std::string decode(std::span<const Token> tokens) const {
    std::string text;
    for (const Token token : tokens) {
      require(token >= 0 && token < vocab_size(), "CharTokenizer::decode", "token",
              "0 to " + std::to_string(vocab_size() - 1), token);
      append_utf8(text, characters_[static_cast<std::size_t>(token)]);
    }
    return text;
  }

  // {"type": "characters", "characters": "..."}
  void save(const std::filesystem::path& path) const {
    std::string text;
    for (const char32_t character : characters_) append_utf8(text, character);
    write_json(path, {{"type", "characters"}, {"characters", text}});
  }
  // Errors: a file that save did not write.
  static CharTokenizer load(const std::filesystem::path& path) {
    const nlohmann::json json = read_json(path);
    const bool valid = json.is_object() && json.size() == 2 && json.value("type", nlohmann::json()) == "characters" &&
                       json.contains("characters") && json["characters"].is_string();
    require(valid, "CharTokenizer::load", path.string(), "type \"characters\" and a string of characters",
            "something else");
    const auto text = json["characters"].get<std::string>();
    const CharTokenizer tokenizer(text);
    std::vector<Token> ascending(tokenizer.characters_.size());
    for (std::size_t i = 0; i < ascending.size(); ++i) ascending[i] = static_cast<Token>(i);
    require(tokenizer.decode(ascending) == text, "CharTokenizer::load", path.string(), "ascending characters",
            "another order");
    return tokenizer;
  }

 private:
  template <class Visit>
  static void for_each_character(std::string_view operation, std::string_view text, Visit&& visit) {
    for (std::size_t i = 0; i < text.size();) {
      const CodePoint point = decode_utf8(text, i);
      if (point.value == CodePoint::invalid)
        throw Error(operation, "text", "valid UTF-8", "another byte at " + std::to_string(i));
      visit(i, point.value);
      i += point.length;
    }
  }

  std::vector<char32_t> characters_;  // ascending
};

static_assert(Tokenizer<ByteTokenizer> && Tokenizer<CharTokenizer> && Tokenizer<BpeTokenizer> &&
              Tokenizer<Llama2cTokenizer>);

}  // namespace rbar
