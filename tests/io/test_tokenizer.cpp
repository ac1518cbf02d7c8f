// Byte, character and llama2.c tokenizers.
#include "rbar/io/tokenizer.hpp"

#include "io/temporary_folder.hpp"
#include "rbar/core/random.hpp"
#include "support/catch.hpp"

#include <cstdlib>
#include <cstring>

TEST_CASE("bytes are tokens", "[io]") {
  std::string text(256, '\0');
  for (std::size_t i = 0; i < 256; ++i) text[i] = static_cast<char>(i);
  const rbar::ByteTokenizer tokenizer;
  const auto tokens = tokenizer.encode(text);
  CHECK(tokens[200] == 200);
  CHECK(tokenizer.decode(tokens) == text);
  CHECK_THROWS_AS(tokenizer.decode(std::vector<rbar::Token>{256}), rbar::Error);
  CHECK_THROWS_AS(tokenizer.decode(std::vector<rbar::Token>{-1}), rbar::Error);
}

TEST_CASE("characters are tokens, in order of their code points", "[io]") {
  const rbar::CharTokenizer tokenizer("héllo wörld\n東京🎉");
  CHECK(tokenizer.vocab_size() == 13);
  CHECK(tokenizer.encode("\n 🎉é") == std::vector<rbar::Token>{0, 1, 12, 8});
  CHECK(tokenizer.decode(tokenizer.encode("wörld東京")) == "wörld東京");
  CHECK_THROWS_WITH(tokenizer.encode("hex"),
                    ContainsText("byte 1: expected one of the vocabulary's 13 characters, got 'e'"));
  CHECK_THROWS_WITH(tokenizer.encode("h\xff"), ContainsText("expected valid UTF-8, got another byte at 1"));
  CHECK_THROWS_WITH(rbar::CharTokenizer("\xc3"), ContainsText("valid UTF-8"));
  CHECK_THROWS_AS(tokenizer.decode(std::vector<rbar::Token>{13}), rbar::Error);
  CHECK(rbar::CharTokenizer("").vocab_size() == 0);
}

TEST_CASE("a character vocabulary survives its file, and no other file is taken for one", "[io]") {
  const test::TemporaryFolder folder;
  const std::string text = "\x01\t\"\\ü\u2028\U0010ffff";
  rbar::CharTokenizer(text).save(folder / "tokenizer.json");
  const auto loaded = rbar::CharTokenizer::load(folder / "tokenizer.json");
  CHECK(loaded.vocab_size() == 7);
  CHECK(loaded.decode(loaded.encode(text)) == text);
  for (const char* wrong : {"", "[]", "{}", R"({"type":"characters"})", R"({"type":"characters","characters":7})",
                            R"({"type":"bpe","characters":"ab"})", R"({"type":"characters","characters":"ba"})",
                            R"({"type":"characters","characters":"aab"})", R"({"type":1,"characters":"ab"})",
                            R"({"type":"characters","characters":"ab","x":1})"}) {
    CAPTURE(wrong);
    CHECK_THROWS_AS(rbar::CharTokenizer::load(folder.write("tokenizer.json", wrong)), rbar::Error);
  }
  CHECK_THROWS_AS(rbar::CharTokenizer::load(folder / "none"), rbar::Error);
}

namespace {

using Vocabulary = std::vector<std::pair<std::string, float>>;

Vocabulary llama2c_vocabulary(const Vocabulary& pieces) {
  Vocabulary vocabulary = {{"<unk>", 0.0f}, {"\n<s>\n", 0.0f}, {"\n</s>\n", 0.0f}};
  char text[8];
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::snprintf(text, sizeof text, "<0x%02X>", byte);
    vocabulary.push_back({text, 0.0f});
  }
  vocabulary.insert(vocabulary.end(), pieces.begin(), pieces.end());
  return vocabulary;
}
std::string llama2c_bytes(const Vocabulary& vocabulary, std::int32_t longest = 7) {
  std::string bytes(reinterpret_cast<const char*>(&longest), 4);
  for (const auto& [piece, score] : vocabulary) {
    const auto length = static_cast<std::int32_t>(piece.size());
    bytes.append(reinterpret_cast<const char*>(&score), 4).append(reinterpret_cast<const char*>(&length), 4) += piece;
  }
  return bytes;
}
rbar::Llama2cTokenizer llama2c_tokenizer(const std::string& bytes) {
  const test::TemporaryFolder folder;
  return rbar::Llama2cTokenizer(folder.write("tokenizer.bin", bytes));
}

// As llama2.c does it: over and over, join the neighbours whose union has the best score.
std::vector<rbar::Token> plain_llama2c(const Vocabulary& vocabulary, const std::string& text) {
  const auto lookup = [&](const std::string& piece) {
    for (std::size_t i = 0; i < vocabulary.size(); ++i)
      if (vocabulary[i].first == piece) return static_cast<rbar::Token>(i);
    return rbar::Token{-1};
  };
  std::vector<rbar::Token> tokens = {lookup(" ")};
  for (std::size_t i = 0; i < text.size();) {
    const std::string character = text.substr(i, rbar::decode_utf8(text, i).length);
    if (const auto token = lookup(character); token >= 0)
      tokens.push_back(token);
    else
      for (const char c : character) tokens.push_back(static_cast<unsigned char>(c) + 3);
    i += character.size();
  }
  for (;;) {
    float best = -1e10f;
    std::size_t position = tokens.size();
    rbar::Token merged = -1;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const auto name = [&](std::size_t k) { return vocabulary[static_cast<std::size_t>(tokens[k])].first; };
      const auto token = lookup(name(i) + name(i + 1));
      if (token < 0 || vocabulary[static_cast<std::size_t>(token)].second <= best) continue;
      best = vocabulary[static_cast<std::size_t>(token)].second;
      position = i;
      merged = token;
    }
    if (position == tokens.size()) break;
    tokens[position] = merged;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(position) + 1);
  }
  tokens.insert(tokens.begin(), 1);
  return tokens;
}

}  // namespace

TEST_CASE("llama2.c's tokenizer agrees with the plain algorithm", "[io]") {
  rbar::Rng rng(80);
  for (int round = 0; round < 10; ++round) {
    Vocabulary pieces = {{" ", -1}, {"a", -2}, {"b", -3}, {"é", -4}};
    while (pieces.size() < 20) {  // equal scores too: the leftmost pair comes first then
      const std::string piece = pieces[rng.below(pieces.size())].first + pieces[rng.below(pieces.size())].first;
      const bool known = std::any_of(pieces.begin(), pieces.end(), [&](const auto& p) { return p.first == piece; });
      if (!known) pieces.push_back({piece, -5.0f - static_cast<float>(rng.below(6))});
    }
    const Vocabulary vocabulary = llama2c_vocabulary(pieces);
    const auto tokenizer = llama2c_tokenizer(llama2c_bytes(vocabulary));
    for (int word = 0; word < 10; ++word) {
      std::string text;
      for (std::uint64_t length = 1 + rng.below(30); length > 0; --length)
        text += std::array{"a", "b", " ", "é", "z", "\xff", "日"}[rng.below(word % 2 ? 4 : 7)];
      CAPTURE(round, text);
      const auto tokens = tokenizer.encode(text);
      REQUIRE(tokens == plain_llama2c(vocabulary, text));
      REQUIRE(tokenizer.decode(tokens) == text);
    }
  }
}

TEST_CASE("llama2.c's special tokens", "[io]") {
  const auto tokenizer = llama2c_tokenizer(llama2c_bytes(llama2c_vocabulary({{" ", -1}, {"a", -2}, {" a", -3}})));
  CHECK(tokenizer.vocab_size() == 262);
  CHECK(tokenizer.encode("aa") == std::vector<rbar::Token>{1, 261, 260});
  CHECK(tokenizer.encode("a", false) == std::vector<rbar::Token>{261});
  CHECK(tokenizer.encode("") == std::vector<rbar::Token>{1});
  CHECK(tokenizer.decode(std::vector<rbar::Token>{1, 261, 2, 1, 261, 261}) == "aa a");
  CHECK(tokenizer.decode(std::vector<rbar::Token>{261, 3 + 0xc3, 3 + 0xa9}) == " aé");
  CHECK_THROWS_AS(tokenizer.decode(std::vector<rbar::Token>{262}), rbar::Error);
}

TEST_CASE("hostile llama2.c tokenizers are an error", "[io]") {
  const auto vocabulary = llama2c_vocabulary({{" ", -1}, {"ab", -2}});
  const std::string good = llama2c_bytes(vocabulary);
  REQUIRE_NOTHROW(llama2c_tokenizer(good));
  const auto refuses = [](const std::string& bytes, const std::string& message) {
    CHECK_THROWS_WITH(llama2c_tokenizer(bytes), ContainsText(message));
  };
  refuses("", "4 more bytes, got 0");
  refuses(llama2c_bytes(vocabulary, 0), "longest token: expected 1 to 1024, got 0");
  refuses(llama2c_bytes(vocabulary, -1), "got -1");
  refuses(llama2c_bytes({}), "at least 259 tokens, got 0");
  refuses(good.substr(0, good.size() - 1), "token 260: length: expected 0 to 1, got 2");
  refuses(good.substr(0, good.size() - 4), "4 more bytes");
  refuses(good + "x", "token 261");
  auto damaged = vocabulary;
  damaged[5].second = std::nanf("");
  refuses(llama2c_bytes(damaged), "token 5: score: expected a finite number, got nan");
  damaged = vocabulary;
  damaged[258].first = "<0xfe>";
  refuses(llama2c_bytes(damaged), "byte token: expected <0xFF>, got <0xfe>");
  std::string negative = good;
  negative[8 + 3] = '\x80';
  refuses(negative, "token 0: length");
  rbar::Rng rng(81);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = good;
    bytes[rng.below(bytes.size())] = static_cast<char>(rng.below(256));
    if (round % 3 == 0) bytes.resize(rng.below(bytes.size()));
    try {
      const auto tokenizer = llama2c_tokenizer(bytes);
      CHECK(tokenizer.decode(tokenizer.encode("abba \xff")) == "abba \xff");
    } catch (const rbar::Error&) {
    }
  }
}

TEST_CASE("the tokenizer of stories260K", "[io]") {
  const char* data = std::getenv("RBAR_DATA_DIR");
  const std::filesystem::path path = std::filesystem::path(data != nullptr ? data : "") / "tok512.bin";
  if (!std::filesystem::exists(path)) {
    WARN("no tok512.bin in RBAR_DATA_DIR: skipped");
    return;
  }
  const rbar::Llama2cTokenizer tokenizer(path);
  CHECK(tokenizer.vocab_size() == 512);
  for (const char* text :
       {"Once upon a time, there was a little girl named Lily.", "  two  spaces\n", "naïve 東京\xff"})
    CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
  CHECK(tokenizer.encode("Once upon a time").size() == 5);
}
