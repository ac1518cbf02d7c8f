#include "text.hpp"

#include "rbar/io/json.hpp"
#include "rbar/io/tokenizer.hpp"

#include <memory>
#include <utility>

namespace rbar_lm {
namespace {

namespace fs = std::filesystem;

// tokenizer.json says which tokenizer a folder has; GPT-2's two files lie beside it under their own names.
template <rbar::Tokenizer T>
AnyTokenizer any(const char* kind, T value, std::function<void(const fs::path&)> save) {
  const auto tokenizer = std::make_shared<const T>(std::move(value));
  AnyTokenizer result;
  result.kind = kind;
  result.vocabulary = tokenizer->vocab_size();
  result.encode = [tokenizer](std::string_view text) { return tokenizer->encode(text); };
  result.decode = [tokenizer](std::span<const Token> tokens) { return tokenizer->decode(tokens); };
  result.save = std::move(save);
  return result;
}

AnyTokenizer bytes_tokenizer() {
  return any("bytes", rbar::ByteTokenizer{}, [](const fs::path& folder) {
    rbar::write_json(folder / "tokenizer.json", {{"type", "bytes"}});
  });
}
AnyTokenizer character_tokenizer(const rbar::CharTokenizer& tokenizer) {
  return any("chars", tokenizer, [tokenizer](const fs::path& folder) { tokenizer.save(folder / "tokenizer.json"); });
}
AnyTokenizer bpe_tokenizer(const fs::path& vocabulary, const fs::path& merges) {
  return any("bpe", rbar::BpeTokenizer(vocabulary, merges), [vocabulary, merges](const fs::path& folder) {
    rbar::write_file_atomically(folder / "encoder.json", rbar::MappedFile(vocabulary).text());
    rbar::write_file_atomically(folder / "vocab.bpe", rbar::MappedFile(merges).text());
    rbar::write_json(folder / "tokenizer.json", {{"type", "bpe"}});
  });
}

}  // namespace

std::vector<std::string> AnyTokenizer::pieces(std::span<const Token> tokens) const {
  std::vector<std::string> list;
  for (const Token& token : tokens) list.push_back(decode({&token, 1}));
  return list;
}

std::string read_text(const std::string& path) {
  const rbar::MappedFile file(path);
  rbar::require(!file.text().empty(), "text", path, "some text", "an empty file");
  return std::string(file.text());
}

AnyTokenizer make_tokenizer(const std::string& kind, std::string_view text, const std::string& vocabulary,
                            const std::string& merges) {
  if (kind == "bytes") return bytes_tokenizer();
  if (kind == "chars") return character_tokenizer(rbar::CharTokenizer(text));
  rbar::require(kind == "bpe", "arguments", "--tokenizer", "bytes, chars or bpe", "'" + kind + "'");
  rbar::require(!vocabulary.empty() && !merges.empty(), "arguments", "--tokenizer bpe",
                "--bpe-vocabulary and --bpe-merges beside it", "none");
  return bpe_tokenizer(vocabulary, merges);
}

AnyTokenizer load_tokenizer(const fs::path& folder) {
  const fs::path path = folder / "tokenizer.json";
  const nlohmann::json json = rbar::read_json(path);
  const std::string type = json.is_object() ? json.value("type", std::string()) : std::string();
  if (type == "bytes") return bytes_tokenizer();
  if (type == "characters") return character_tokenizer(rbar::CharTokenizer::load(path));
  rbar::require(type == "bpe", "load_tokenizer", path.string(), "type bytes, characters or bpe", "'" + type + "'");
  return bpe_tokenizer(folder / "encoder.json", folder / "vocab.bpe");
}

}  // namespace rbar_lm
