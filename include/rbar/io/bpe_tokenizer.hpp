// GPT-2's byte-level byte-pair encoding (Radford et al. 2019; Sennrich, Haddow, Birch 2016), from its
// two published files: encoder.json (token -> id) and vocab.bpe (merges in order of rank).
#pragma once

#include "rbar/core/tensor.hpp"
#include "rbar/io/json.hpp"
#include "rbar/io/pair_merger.hpp"
#include "rbar/io/utf8.hpp"

#include <array>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace rbar {

namespace detail {

// The length of the piece that starts at `begin` under GPT-2's pattern, whose alternatives are tried in order:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline std::size_t gpt2_piece_length(std::string_view text, std::size_t begin) {
  constexpr std::string_view contractions[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  if (text[begin] == '\'')
    for (const auto contraction : contractions)
      if (text.substr(begin, contraction.size()) == contraction) return contraction.size();

  // An optional blank, then as many as there are of one class.
  const bool blank = text[begin] == ' ' && begin + 1 < text.size();
  const std::size_t start = begin + (blank ? 1 : 0);
  CodePoint point = decode_utf8(text, start);
  const CharacterClass kind = character_class(point.value);
  if (kind != CharacterClass::space) {
    std::size_t end = start;
    do {
      end += point.length;
      if (end == text.size()) break;
      point = decode_utf8(text, end);
    } while (character_class(point.value) == kind);
    return end - begin;
  }

  // A run of white space; its last character is left to what follows, if something does.
  std::size_t end = begin, last = begin;
  while (end < text.size()) {
    point = decode_utf8(text, end);
    if (character_class(point.value) != CharacterClass::space) break;
    last = end;
    end += point.length;
  }
  return (end == text.size() || last == begin ? end : last) - begin;
}

// The files write bytes as characters that can be seen: printable Latin-1 as itself, the other 68
// bytes, in order, as U+0100 and so on.
inline std::array<char32_t, 256> gpt2_byte_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    characters[byte] = visible ? byte : next++;
  }
  return characters;
}

}  // namespace detail

// encode and decode are inverse on any bytes, valid UTF-8 or not, and may be called from any thread.
class BpeTokenizer {
 public:
  // Errors: malformed files, ids that are not 0, 1, 2, ..., a byte without token, a merge of or into
  // something that is no token, a merge given twice.
  BpeTokenizer(const std::filesystem::path& encoder_json, const std::filesystem::path& vocab_bpe) {
    read_tokens(encoder_json);
    read_merges(vocab_bpe);
  }

  Token vocab_size() const { return static_cast<Token>(bytes_.size()); }
  // <|endoftext|>, where the vocabulary has it.
  std::optional<Token> end_of_text() const { return end_of_text_; }

  // With `special`, the text <|endoftext|> becomes that one token; otherwise it is text like any other.
  std::vector<Token> encode(std::string_view text, bool special = false) const {
    require(text.size() < (std::size_t{1} << 31), "BpeTokenizer::encode", "text", "less than 2 GiB", text.size());
    std::vector<Token> tokens;
    PairMerger merger(merges_);
    while (special && end_of_text_) {
      const std::size_t found = text.find(end_of_text_name);
      if (found == text.npos) break;
      encode_ordinary(text.substr(0, found), merger, tokens);
      tokens.push_back(*end_of_text_);
      text.remove_prefix(found + end_of_text_name.size());
    }
    encode_ordinary(text, merger, tokens);
    return tokens;
  }

  // Errors: an id outside the vocabulary.
  std::string decode(std::span<const Token> tokens) const {
    std::string text;
    for (const Token token : tokens) {
      require(token >= 0 && token < vocab_size(), "BpeTokenizer::decode", "token",
              "0 to " + std::to_string(vocab_size() - 1), token);
      text += bytes_[static_cast<std::size_t>(token)];
    }
    return text;
  }

 private:
  static constexpr std::string_view end_of_text_name = "<|endoftext|>";

  void encode_ordinary(std::string_view text, PairMerger& merger, std::vector<Token>& tokens) const {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t length = detail::gpt2_piece_length(text, begin);
      for (const char c : text.substr(begin, length)) merger.add(byte_tokens_[static_cast<unsigned char>(c)]);
      merger.merge_into(tokens);
      begin += length;
    }
  }

  void read_tokens(const std::filesystem::path& path) {
    constexpr std::string_view operation = "BpeTokenizer";
    const nlohmann::json json = read_json(path);
    require(json.is_object(), operation, path.string(), "an object of tokens", json.type_name());
    bytes_.resize(json.size());
    std::vector<bool> seen(json.size());
    for (const auto& [text, id] : json.items()) {
      const std::uint64_t token = id.is_number_unsigned() ? id.get<std::uint64_t>() : json.size();
      if (token >= json.size() || seen[token])
        throw Error(operation, path.string() + ": id of '" + detail::printable(text) + "'",
                    "each of 0 to " + std::to_string(json.size() - 1) + " once",
                    detail::printable(id.dump(-1, ' ', true)));
      seen[token] = true;
      bytes_[token] = bytes_of(text, path.string());
      ids_.emplace(bytes_[token], static_cast<Token>(token));
    }
    require(ids_.size() == bytes_.size(), operation, path.string(), "distinct tokens", "two of the same bytes");
    for (std::size_t byte = 0; byte < 256; ++byte)
      byte_tokens_[byte] = id_of(std::string(1, static_cast<char>(byte)), path.string() + ": tokens");
    if (const auto found = ids_.find(std::string(end_of_text_name)); found != ids_.end()) end_of_text_ = found->second;
  }

  void read_merges(const std::filesystem::path& path) {
    const MappedFile file(path);
    std::string_view text = file.text();
    merges_ = MergeTable(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) + 1);
    std::uint32_t rank = 0;
    for (std::size_t number = 1; !text.empty(); ++number) {
      std::string_view line = text.substr(0, text.find('\n'));
      text.remove_prefix(std::min(text.size(), line.size() + 1));
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
      const std::string where = path.string() + ": line " + std::to_string(number);
      const std::size_t blank = line.find(' ');
      if (blank == line.npos || line.find(' ', blank + 1) != line.npos)
        throw Error("BpeTokenizer", where, "two tokens", "'" + detail::printable(line) + "'");
      const std::string left = bytes_of(line.substr(0, blank), where), right = bytes_of(line.substr(blank + 1), where);
      if (!merges_.insert(id_of(left, where), id_of(right, where), {rank++, id_of(left + right, where)}))
        throw Error("BpeTokenizer", where, "a new merge", "'" + detail::printable(line) + "' again");
    }
  }

  static std::string bytes_of(std::string_view characters, const std::string& where) {
    static const std::array<char32_t, 256> alphabet = detail::gpt2_byte_characters();
    std::string bytes;
    for (std::size_t i = 0; i < characters.size();) {
      const CodePoint point = decode_utf8(characters, i);
      const auto* byte = std::find(alphabet.begin(), alphabet.end(), point.value);
      if (byte == alphabet.end())
        throw Error("BpeTokenizer", where, "characters of the byte alphabet",
                    "'" + detail::printable(characters) + "'");
      bytes += static_cast<char>(static_cast<unsigned char>(byte - alphabet.begin()));
      i += point.length;
    }
    return bytes;
  }
  Token id_of(const std::string& bytes, const std::string& where) const {
    const auto found = ids_.find(bytes);
    if (found == ids_.end())
      throw Error("BpeTokenizer", where, "a token of the vocabulary", "'" + detail::printable(bytes) + "'");
    return found->second;
  }

  std::vector<std::string> bytes_;  // of each token
  std::unordered_map<std::string, Token> ids_;
  std::array<Token, 256> byte_tokens_{};
  MergeTable merges_;
  std::optional<Token> end_of_text_;
};

}  // namespace rbar
