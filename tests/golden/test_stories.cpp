// A real checkpoint of somebody else's: a Llama-style model with 260,000 parameters, trained on stories. The file says
// which 257 tokens greedy decoding gives after token 1. It is not part of this repository: RBAR_DATA_DIR names its
// folder.
#include "rbar/io/llama_checkpoint.hpp"
#include "rbar/model/generate.hpp"
#include "support/catch.hpp"
#include "support/differences.hpp"

#include <cstdlib>

using namespace rbar;

namespace {

// The file, or an empty path after saying that it is not there.
std::filesystem::path checkpoint() {
  const char* folder = std::getenv("RBAR_DATA_DIR");
  const auto path = std::filesystem::path(folder && *folder ? folder : ".") / "stories260K.safetensors";
  if (std::filesystem::exists(path)) return path;
  WARN("skipped: no stories260K.safetensors in the folder RBAR_DATA_DIR");
  return {};
}

}  // namespace

TEST_CASE("stories260K decodes greedily to its own ids, with the cache and without", "[golden]") {
  const auto path = checkpoint();
  if (path.empty()) return;
  const SafetensorsFile file(path);
  const auto model = load_llama<float>(path);
  std::vector<Token> expected(file.at("greedy.ids").data.size() / sizeof(std::int64_t));
  file.copy_to("greedy.ids", std::span<Token>(expected));
  REQUIRE(expected.size() == 257);
  GenerateOptions options;
  options.max_new_tokens = static_cast<Index>(expected.size());
  options.temperature = 0;
  const Token start = 1;
  for (const bool use_cache : {true, false}) {
    INFO("use_cache " << use_cache);
    options.use_cache = use_cache;
    CHECK(generate(model, std::span(&start, 1), options) == expected);
  }
}

TEST_CASE("stories260K gives the logits that its file records", "[golden]") {
  const auto path = checkpoint();
  if (path.empty()) return;
  const SafetensorsFile file(path);
  const auto model = load_llama<float>(path);
  const auto expected = file.tensor<float, 1>("greedy.logit_of_next");
  const auto ids = file.tensor<Token, 1>("greedy.ids");
  Tensor<Token, 2> tokens(1, ids.size());
  tokens(0, 0) = 1;
  for (Index i = 1; i < ids.size(); ++i) tokens(0, i) = ids(i - 1);
  const Tensor<float, 3> logits = model(tokens);
  double largest = 0, error = 0;
  for (Index i = 0; i < ids.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected(i))));
    error = test::larger(error, std::abs(static_cast<double>(logits(0, i, ids(i)) - expected(i))));
  }
  INFO("largest difference " << error << " of " << largest);
  CHECK(error < 2e-5 * largest);
}
