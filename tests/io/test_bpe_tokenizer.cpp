// GPT-2's tokenizer: the splitting pattern, merging against the plain algorithm, hostile files, and
// the ids of tiktoken 1.0.22 (its Rust code as WebAssembly) where the real files are at hand.
#include "io/temporary_folder.hpp"
#include "rbar/core/random.hpp"
#include "rbar/io/tokenizer.hpp"
#include "support/catch.hpp"

#include <cstdlib>
#include <map>

namespace {

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> result;
  for (std::size_t begin = 0; begin < text.size(); begin += result.back().size())
    result.emplace_back(text.substr(begin, rbar::detail::gpt2_piece_length(text, begin)));
  return result;
}

// A vocabulary of all bytes, then of one token a merge; merges are pairs of printable tokens.
struct SmallBpe {
  std::vector<std::pair<std::string, std::string>> merges;
  bool special = false;

  nlohmann::json encoder() const {
    nlohmann::json json;
    rbar::Token next = 0;
    for (const char32_t character : rbar::detail::gpt2_byte_characters()) {
      std::string text;
      rbar::append_utf8(text, character);
      json[text] = next++;
    }
    for (const auto& [left, right] : merges) json[left + right] = next++;
    if (special) json["<|endoftext|>"] = next++;
    return json;
  }
  std::string lines() const {
    std::string text = "#version: 0.2\n";
    for (const auto& [left, right] : merges) text += left + " " + right + "\n";
    return text;
  }
  rbar::BpeTokenizer tokenizer() const { return make(encoder().dump(), lines()); }

  static rbar::BpeTokenizer make(const std::string& encoder, const std::string& lines) {
    const test::TemporaryFolder folder;
    return rbar::BpeTokenizer(folder.write("encoder.json", encoder), folder.write("vocab.bpe", lines));
  }
};

// The published algorithm: find the best pair of the word, merge it everywhere, look again.
std::vector<std::string> plain_bpe(const SmallBpe& bpe, const std::string& word) {
  std::vector<std::string> parts;
  for (const char c : word) parts.emplace_back(1, c);
  for (;;) {
    std::size_t best = bpe.merges.size();
    for (std::size_t i = 0; i + 1 < parts.size(); ++i)
      for (std::size_t rank = 0; rank < best; ++rank)
        if (bpe.merges[rank] == std::pair(parts[i], parts[i + 1])) best = rank;
    if (best == bpe.merges.size()) return parts;
    std::vector<std::string> merged;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (i + 1 < parts.size() && bpe.merges[best] == std::pair(parts[i], parts[i + 1])) {
        merged.push_back(parts[i] + parts[i + 1]);
        ++i;
      } else {
        merged.push_back(parts[i]);
      }
    }
    parts = merged;
  }
}

}  // namespace

TEST_CASE("text is split as GPT-2's pattern splits it", "[io]") {
  using Pieces = std::vector<std::string>;
  CHECK(pieces("Hello world") == Pieces{"Hello", " world"});
  CHECK(pieces("it's we've I'll DON'T o'clock") ==
        Pieces{"it", "'s", " we", "'ve", " I", "'ll", " DON", "'", "T", " o", "'", "clock"});
  CHECK(pieces("''s '") == Pieces{"''", "s", " '"});
  CHECK(pieces("'restart 'd'm't") == Pieces{"'re", "start", " '", "d", "'m", "'t"});
  CHECK(pieces("a1b22 33") == Pieces{"a", "1", "b", "22", " 33"});
  CHECK(pieces("x += 'a';\n") == Pieces{"x", " +=", " '", "a", "';", "\n"});
  CHECK(pieces("a   b") == Pieces{"a", "  ", " b"});
  CHECK(pieces("a \n b") == Pieces{"a", " \n", " b"});
  CHECK(pieces("a\n\nb") == Pieces{"a", "\n", "\n", "b"});
  CHECK(pieces("a\tb  ") == Pieces{"a", "\t", "b", "  "});
  CHECK(pieces(" ") == Pieces{" "});
  CHECK(pieces("a ") == Pieces{"a", " "});
  CHECK(pieces("").empty());
  // Letters, numbers and white space of all Unicode; marks and symbols are neither.
  CHECK(pieces("naïve東京x ١٢½Ⅷ") == Pieces{"naïve東京x", " ١٢½Ⅷ"});
  CHECK(pieces("a\u3000\u00a0b\u0085c") == Pieces{"a", "\u3000", "\u00a0", "b", "\u0085", "c"});
  CHECK(pieces("e\u0301🎉 🎉") == Pieces{"e", "\u0301🎉", " 🎉"});
  CHECK(pieces("\U00020000\U000e0001\U00010107") == Pieces{"\U00020000", "\U000e0001", "\U00010107"});
  // Bytes that are no UTF-8 go with the symbols, one by one.
  CHECK(pieces("a\xff\xc3 \xe2\x82z") == Pieces{"a", "\xff\xc3", " \xe2\x82", "z"});
}

TEST_CASE("UTF-8 is decoded strictly", "[io]") {
  for (char32_t value = 0; value < 0x110000; ++value) {
    std::string text;
    rbar::append_utf8(text, value);
    const rbar::CodePoint point = rbar::decode_utf8(text, 0);
    const bool surrogate = value >= 0xd800 && value < 0xe000;
    if (point.value != (surrogate ? rbar::CodePoint::invalid : value) || point.length != (surrogate ? 1 : text.size()))
      FAIL(static_cast<std::uint32_t>(value));
    for (std::size_t cut = 1; cut < text.size(); ++cut)
      if (rbar::decode_utf8(text.substr(0, cut), 0).value != rbar::CodePoint::invalid)
        FAIL(static_cast<std::uint32_t>(value));
  }
  for (const std::string_view text :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xf0\x80\x80\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xc3(", "\xe2(\xa1"})
    CHECK(rbar::decode_utf8(text, 0).value == rbar::CodePoint::invalid);
}

TEST_CASE("merging agrees with the plain algorithm", "[io]") {
  rbar::Rng rng(77);
  for (int round = 0; round < 20; ++round) {
    SmallBpe bpe;  // random merges over three letters, each of tokens that exist
    std::vector<std::string> tokens = {"a", "b", "c"};
    while (bpe.merges.size() < 12) {
      const std::pair pair(tokens[rng.below(tokens.size())], tokens[rng.below(tokens.size())]);
      if (std::find(tokens.begin(), tokens.end(), pair.first + pair.second) != tokens.end()) continue;
      bpe.merges.push_back(pair);
      tokens.push_back(pair.first + pair.second);
    }
    const auto tokenizer = bpe.tokenizer();
    for (int word = 0; word < 20; ++word) {
      std::string text;
      for (std::uint64_t length = 1 + rng.below(40); length > 0; --length) text += "abc"[rng.below(3)];
      std::vector<std::string> parts;
      for (const rbar::Token token : tokenizer.encode(text)) parts.push_back(tokenizer.decode(std::vector{token}));
      CAPTURE(round, text);
      REQUIRE(parts == plain_bpe(bpe, text));
    }
  }
}

TEST_CASE("any bytes survive BPE", "[io]") {
  const auto tokenizer = SmallBpe{{{"a", "b"}, {"Ġ", "ab"}, {"Ã", "©"}, {"a", "a"}, {"aa", "aa"}}}.tokenizer();
  CHECK(tokenizer.vocab_size() == 261);
  CHECK(tokenizer.encode("ab abé") == std::vector<rbar::Token>{256, 257, 258});
  CHECK(tokenizer.encode("").empty());
  rbar::Rng rng(78);
  for (int round = 0; round < 200; ++round) {
    std::string text(rng.below(300), '\0');
    for (char& c : text) c = static_cast<char>(rng.below(round % 2 ? 256 : 4) + (round % 2 ? 0 : 95));
    REQUIRE(tokenizer.decode(tokenizer.encode(text)) == text);
  }
  const std::string one_word(1 << 20, 'a');  // quadratic merging would take hours
  const auto tokens = tokenizer.encode(one_word);
  CHECK(tokens.size() == one_word.size() / 4);
  CHECK(tokenizer.decode(tokens) == one_word);
  for (const rbar::Token token : {-1, 261})
    CHECK_THROWS_WITH(tokenizer.decode(std::vector{token}), ContainsText("token: expected 0 to 260"));
}

TEST_CASE("<|endoftext|> is one token on request, and text otherwise", "[io]") {
  const auto tokenizer = SmallBpe{{{"a", "b"}}, true}.tokenizer();
  REQUIRE(tokenizer.end_of_text() == 257);
  const std::string text = "ab<|endoftext|><|endoftext|>ab<|endoftext";
  const auto tokens = tokenizer.encode(text, true);
  CHECK(std::vector(tokens.begin(), tokens.begin() + 4) == std::vector<rbar::Token>{256, 257, 257, 256});
  CHECK(tokens.size() == 4 + 11);
  CHECK(tokenizer.decode(tokens) == text);
  const auto ordinary = tokenizer.encode(text);
  CHECK(std::find(ordinary.begin(), ordinary.end(), 257) == ordinary.end());
  CHECK(tokenizer.decode(ordinary) == text);
  const auto without = SmallBpe{}.tokenizer();
  CHECK_FALSE(without.end_of_text());
  CHECK(without.decode(without.encode(text, true)) == text);
}

TEST_CASE("hostile BPE files are an error", "[io]") {
  const SmallBpe good{{{"a", "b"}}};
  const auto refuses = [&](const std::string& encoder, const std::string& lines, const std::string& message) {
    CHECK_THROWS_WITH(SmallBpe::make(encoder, lines), ContainsText(message));
  };
  const std::string encoder = good.encoder().dump(), lines = good.lines();
  refuses("", lines, "valid JSON");
  refuses(encoder.substr(0, encoder.size() / 2), lines, "valid JSON");
  refuses("[1, 2]", lines, "an object of tokens, got array");
  refuses("{}", lines, "a token of the vocabulary");
  refuses("{\"a\": 0, \"a\": 1}", lines, "distinct keys");
  const auto changed = [&](const char* key, const nlohmann::json& value) {
    auto json = good.encoder();
    json[key] = value;
    return json.dump();
  };
  for (const nlohmann::json& id : {nlohmann::json(-1), nlohmann::json(5), nlohmann::json(300), nlohmann::json(1.5),
                                   nlohmann::json("1"), nlohmann::json(nullptr), nlohmann::json(1ull << 63)})
    refuses(changed("ab", id), lines, "each of 0 to 256 once");
  refuses(changed("x y", 257), lines, "characters of the byte alphabet, got 'x y'");
  refuses(changed("日", 257), lines, "characters of the byte alphabet");
  refuses(changed("", 257), "\na b c\n", "line 2: expected two tokens");
  refuses(encoder, "ab\n", "line 1: expected two tokens, got 'ab'");
  refuses(encoder, "a b\na b\n", "line 2: expected a new merge");
  refuses(encoder, "a b\n\nb a\n", "line 3: expected a token of the vocabulary, got 'ba'");
  refuses(encoder, "ab c\n", "got 'abc'");
  refuses(encoder, "a \xff\n", "characters of the byte alphabet");
  REQUIRE_NOTHROW(SmallBpe::make(encoder, "a b\r\n"));
  REQUIRE_NOTHROW(SmallBpe::make(encoder, ""));

  rbar::Rng rng(79);
  for (int round = 0; round < 50; ++round) {  // random damage
    std::string e = encoder, l = lines;
    e[rng.below(e.size())] = static_cast<char>(rng.below(256));
    l[rng.below(l.size())] = static_cast<char>(rng.below(256));
    try {
      SmallBpe::make(e, l);
    } catch (const rbar::Error&) {
    }
  }
}

TEST_CASE("the real GPT-2 files give the ids of a well-known tokenizer", "[io]") {
  const char* data = std::getenv("RBAR_DATA_DIR");
  const std::filesystem::path folder = data != nullptr ? data : "";
  if (!std::filesystem::exists(folder / "gpt2.encoder.json")) {
    WARN("no gpt2.encoder.json in RBAR_DATA_DIR: skipped");
    return;
  }
  const rbar::BpeTokenizer tokenizer(folder / "gpt2.encoder.json", folder / "gpt2.vocab.bpe");
  CHECK(tokenizer.vocab_size() == 50257);
  CHECK(tokenizer.end_of_text() == 50256);
  using Ids = std::vector<rbar::Token>;
  const std::pair<const char*, Ids> expected[] = {
      {"Hello, world! It's 2026; they'll've gone.",
       {15496, 11, 995, 0, 632, 338, 1160, 2075, 26, 484, 1183, 1053, 3750, 13}},
      {"  two  spaces\n\n\tand a tab ", {220, 734, 220, 9029, 628, 197, 392, 257, 7400, 220}},
      {"naïve café — 東京タワー 🎉🏳️‍🌈 ½ Ⅷ ١٢٣",
       {2616, 38776, 40304, 851, 10545, 251, 109, 12859, 105,  23376, 25589, 6312,  12520, 236, 231, 8582, 237,
        111,  37929, 447,   235, 8582,  234, 230, 25208, 2343, 227,   100,   18923, 94,    149, 95,  149,  96}},
      {"DON'T don'T 'Tis ''s", {41173, 6, 51, 836, 6, 51, 705, 51, 271, 10148, 82}},
      {"<|endoftext|>", {27, 91, 437, 1659, 5239, 91, 29}},
      {"\u00a0\u3000x\u0085y\u2028 z", {1849, 5099, 222, 87, 126, 227, 88, 447, 101, 1976}}};
  for (const auto& [text, ids] : expected) {
    CAPTURE(text);
    CHECK(tokenizer.encode(text) == ids);
    CHECK(tokenizer.decode(ids) == text);
  }

  // Whole files: the number of ids and their FNV-1a hash, from tiktoken.
  const auto check_file = [&](const char* name, std::size_t most, std::size_t count, std::uint64_t hash) {
    if (!std::filesystem::exists(folder / name)) return;
    const rbar::MappedFile file(folder / name);
    const std::string_view text = file.text().substr(0, most);
    const auto ids = tokenizer.encode(text);
    std::uint64_t ours = 0xcbf29ce484222325;
    for (const rbar::Token id : ids) ours = (ours ^ static_cast<std::uint64_t>(id)) * 0x100000001b3;
    INFO(name);
    CHECK(ids.size() == count);
    CHECK(ours == hash);
    CHECK(tokenizer.decode(ids) == text);
  };
  check_file("tinyshakespeare.txt", 1'115'394, 338025, 0xb547ad363c19676e);
  check_file("wikitext-2.train.txt", 1 << 20, 236670, 0x77ab37f0859339cf);
}
