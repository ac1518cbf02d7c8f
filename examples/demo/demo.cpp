// The demonstration: a standard transformer, CoRT, and CoRT as published (whose layers see the future) learn
// the same real text, byte by byte, with the same steps and the same windows. Then come the table, the audit
// that explains its last row, a sample, and what the router does with a sentence.
#include "../rbar_lm/any_model.hpp"
#include "../rbar_lm/text.hpp"

#include "rbar/core/random.hpp"
#include "rbar/simd/batch.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

namespace {

namespace fs = std::filesystem;
using namespace rbar_lm;

// The default text, which every machine that builds rbar has: the headers of Eigen, one after the other. In a
// random order, so that the last tenth is like the rest.
std::string eigen_headers() {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(RBAR_EIGEN_HEADERS) / "Eigen"))
    if (entry.is_regular_file() && entry.path().extension() == ".h") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  rbar::Rng rng(1);
  for (std::size_t i = files.size(); i > 1; --i) std::swap(files[i - 1], files[rng.below(i)]);
  std::string text;
  for (const fs::path& file : files) text += read_text(file.string());
  return text;
}

struct Contestant {
  std::string name;
  std::unique_ptr<AnyModel> model;
  TrainingResult training = {};
  double bits_from_the_past = 0;
  double attention_share = 1;
  rbar::CausalityReport causality = {};
};

Contestant contestant(const std::string& name, const std::string& family_name, nlohmann::json settings) {
  settings.update({{"vocab_size", 256}, {"max_seq_len", 128}});
  return {name, family(family_name).create(settings, /*seed=*/1)};
}

std::string with_thousands(Index number) {
  std::string digits = std::to_string(number);
  for (std::size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, 1, ',');
  return digits;
}

void run(Contestant& c, const rbar::TokenDataset& data, rbar::TokenSpan validation, Index steps) {
  std::printf("\n%s\n", c.name.c_str());
  std::fflush(stdout);
  TrainingRun run;
  run.train = data.train();
  run.validation = validation;
  run.config.steps = steps;
  run.config.batch_size = 8;
  run.config.window = 128;
  run.config.optimizer.learning_rate = 2e-3;
  run.config.schedule.warmup_steps = steps / 10;
  c.training = c.model->train(run);
  c.bits_from_the_past = c.model->nats_from_the_past(validation, run.config.window) / std::numbers::ln2;
  c.causality = c.model->causality({});
  c.attention_share = attention_share(*c.model, validation, run.config.window);
}

void print_table(const std::vector<Contestant>& contestants) {
  std::printf("\n%-22s %11s %11s %17s %10s %10s  %s\n", "", "parameters", "bits/byte", "without future", "tokens/s",
              "attention", "causality audit");
  for (const Contestant& c : contestants)
    std::printf("%-22s %11s %11.3f %17.3f %10s %8.0f %%  %s\n", c.name.c_str(),
                with_thousands(count_parameters(*c.model)).c_str(), c.training.validation.bits_per_byte,
                c.bits_from_the_past,
                with_thousands(static_cast<Index>(static_cast<double>(c.training.tokens) / c.training.seconds)).c_str(),
                100 * c.attention_share, c.causality.passed() ? "passes" : "LEAKS THE FUTURE");
  std::printf(
      "\nbits/byte: on text that was not trained on. \"without future\": the same, when every byte is predicted with "
      "the\n"
      "text cut off after it, as in real use. attention: share of the tokens that pay for attention.\n");
}

int demo(int count, char** values) {
  std::string text, name;
  Index steps = 500;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int i = 1; i < count; ++i) {
    const std::string option = values[i];
    rbar::require(i + 1 < count, "demo", "arguments", "--text FILE, --steps N or --threads N", option);
    const std::string value = values[++i];
    if (option == "--text")
      text = read_text(name = value);
    else if (option == "--steps")
      steps = std::atoi(value.c_str());
    else if (option == "--threads")
      threads = std::atoi(value.c_str());
    else
      throw rbar::Error("demo", "arguments", "--text FILE, --steps N or --threads N", option);
  }
  if (name.empty()) text = eigen_headers(), name = "the headers of Eigen";
  rbar::set_num_threads(threads);

  const auto start = std::chrono::steady_clock::now();
  const AnyTokenizer tokenizer = make_tokenizer("bytes", text, "", "");
  const rbar::TokenDataset data(tokenizer.encode(text));
  const rbar::TokenSpan validation = data.validation().first(std::min<std::size_t>(65536, data.validation().size()));
  std::printf("Text: %s, %s bytes; the last tenth validates. %lld steps of 8 windows of 128 bytes, %d thread%s, %s.\n",
              name.c_str(), with_thousands(static_cast<Index>(text.size())).c_str(), static_cast<long long>(steps),
              threads, threads == 1 ? "" : "s", rbar::simd::architecture());

  std::vector<Contestant> contestants;
  contestants.push_back(contestant("standard", "standard", nlohmann::json::object()));
  contestants.push_back(contestant("CoRT", "cort", {{"route_frac", 0.3}}));
  contestants.push_back(contestant("CoRT as published", "cort", {{"route_frac", 0.3}, {"causality", "reference"}}));
  for (Contestant& c : contestants) run(c, data, validation, steps);

  print_table(contestants);
  const Contestant& honest = contestants[1];
  const Contestant& leaky = contestants[2];
  std::printf(
      "\nWhy the last row is no success: the audit changes a byte, and predictions of earlier bytes move.\n"
      "  CoRT:               %s\n  CoRT as published:  %s\n"
      "The published layers see the very bytes they are asked to predict; cut the text off, and what they learnt\n"
      "is worth %.3f bits/byte instead of %.3f.\n",
      honest.causality.text().c_str(), leaky.causality.text().c_str(), leaky.bits_from_the_past,
      leaky.training.validation.bits_per_byte);

  const std::string prompt = text.substr(data.train().size(), 48);
  rbar::GenerateOptions options;
  options.max_new_tokens = 240;
  options.temperature = 0.7;
  const auto sample = honest.model->generate(tokenizer.encode(prompt), options);
  std::printf("\nA sample of CoRT, after the first 48 bytes:\n%s", prompt.c_str());
  std::printf("%s\n", tokenizer.decode(sample).c_str());

  const std::string sentence = text.substr(data.train().size(), 120);
  const auto tokens = tokenizer.encode(sentence);
  std::printf("\nWhat its router does with a text:\n%s\n",
              honest.model->routing(tokens, tokenizer.pieces(tokens)).text(/*colour=*/true).c_str());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  std::printf("\n%.0f s in all.\n", elapsed.count());
  return honest.causality.passed() && !leaky.causality.passed() ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
  try {
    return demo(count, values);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "demo: %s\n", error.what());
    return 2;
  }
}
