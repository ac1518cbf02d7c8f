// Two trained models of the same task beside each other in one process: latency, memory and perplexity. Every timed
// call of one is followed by the same call of the other, so that a change of the clock or of the machine's load meets
// both. cgt_promise.py calls it; by hand:
//
//   latency_pair STANDARD_FOLDER OTHER_FOLDER TEXT [--threads=1] [--length=128] [--windows=200] [--rounds=3] ...
//
// The folders are rbar_lm's, trained on bytes, the second a CGT's or another standard model's; of TEXT the last tenth
// validates. Ends with one line of JSON; times in
// seconds, memory in bytes, energies normalised by the model's own running scale.
#include "../support.hpp"

#include "rbar/io/pretrained.hpp"
#include "rbar/io/tokenizer.hpp"
#include "rbar/model/cgt.hpp"
#include "rbar/model/transformer.hpp"
#include "rbar/train/evaluate.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <tuple>
#include <utility>

#include "../heap_meter.hpp"

namespace {

using namespace rbar;
using Json = nlohmann::ordered_json;

struct Options {
  Index threads = 1;
  Index length = 128;           // tokens of a window
  Index windows = 200;          // of one sequence each, spread over the validation text
  Index rounds = 3;             // how often each window is timed
  Index decode_windows = 8;     // whose tokens are also fed one by one
  Index batch = 32;             // of the memory measurement
  Index score_tokens = 0;       // validation tokens that the perplexity is taken over; 0: all
  Index verify_tokens = 50001;  // ... and those that are verified, at each pressure

  void fields(auto&& visit) {
    visit("threads", threads);
    visit("length", length);
    visit("windows", windows);
    visit("rounds", rounds);
    visit("decode-windows", decode_windows);
    visit("batch", batch);
    visit("score-tokens", score_tokens);
    visit("verify-tokens", verify_tokens);
  }
};

// "--name=value" into the option of that name.
bool set_option(Options& options, std::string_view word) {
  bool known = false;
  options.fields([&](std::string_view name, Index& value) {
    const std::string prefix = "--" + std::string(name) + "=";
    if (!word.starts_with(prefix)) return;
    value = std::atoll(std::string(word.substr(prefix.size())).c_str());
    known = true;
  });
  return known;
}

// Windows [1, length], evenly spread over the text.
std::vector<Tensor<Token, 2>> spread_windows(TokenSpan tokens, Index length, Index count) {
  require(static_cast<Index>(tokens.size()) > length, "latency_pair", "validation tokens", "more than a window",
          tokens.size());
  std::vector<Tensor<Token, 2>> windows;
  for (Index i = 0; i < count; ++i) {
    const Index start = (static_cast<Index>(tokens.size()) - length) * i / std::max<Index>(1, count - 1);
    windows.emplace_back(1, length);
    std::copy_n(tokens.begin() + start, length, windows.back().data());
  }
  return windows;
}

Json summary_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto quantile = [&](double share) {
    return values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  double sum = 0;
  for (const double value : values) sum += value;
  return {{"mean", sum / static_cast<double>(values.size())},
          {"p50", quantile(0.5)},
          {"p99", quantile(0.99)},
          {"least", values.front()},
          {"largest", values.back()}};
}

// What calls of one kind took: per window, one number a round.
struct Timings {
  std::vector<std::vector<double>> seconds;

  // Over all calls, as a user meets them; and over the windows, each with its median over the rounds, which leaves
  // what the input costs and takes out what the machine does.
  Json summary() const {
    std::vector<double> all, windows;
    for (const auto& window : seconds) {
      all.insert(all.end(), window.begin(), window.end());
      windows.push_back(bench::median(window));
    }
    Json json = summary_of(all);
    json["p99_of_windows"] = summary_of(windows)["p99"];
    return json;
  }
};

// A model whose tokens take lanes, more of them short ones under pressure, and whose outputs are verified.
template <class Model>
concept Gated = requires(const Model model, ConstTensorView<Token, 2> tokens, typename Model::State state) {
  model.infer(tokens, InferOptions{.pressure = 0.5}, state);
};

template <LanguageModel Model>
struct Subject {
  std::string folder;
  Model model;
  typename Model::Cache cache;
  Tensor<float, 3> logits;

  explicit Subject(const std::string& folder_) : folder(folder_), model(from_pretrained<Model>(folder_)) {}

  // Logits of all tokens, in buffers that are there already.
  double time_forward(const Tensor<Token, 2>& window) {
    const double start = bench::now();
    model.forward(view(window), logits, cache);
    return bench::now() - start;
  }
  // The same into a fresh state, ready to go on: what a prompt costs.
  double time_prefill(const Tensor<Token, 2>& window) {
    typename Model::State state;
    const double start = bench::now();
    model.step(view(window), logits, state);
    return bench::now() - start;
  }
  // The same with every output verified, where a model does that.
  double time_answer(const Tensor<Token, 2>& window, double pressure = 0) {
    if constexpr (Gated<Model>) {
      typename Model::State state;
      const double start = bench::now();
      const auto output = model.infer(view(window), {.pressure = pressure}, state);
      return bench::now() - start;
    } else {
      return time_prefill(window);
    }
  }
  // Its tokens one by one, from an empty context, verified likewise: mean of a token.
  double time_decode(const Tensor<Token, 2>& window) {
    typename Model::State state;
    const double start = bench::now();
    for (Index t = 0; t < window.size(); ++t) {
      const auto token = view(window.data() + t, 1, 1);
      if constexpr (Gated<Model>)
        const auto output = model.infer(token, {}, state);
      else
        model.step(token, logits, state);
    }
    return (bench::now() - start) / static_cast<double>(window.size());
  }

  // Heap that a batch needs beyond the model and its inputs, logits included.
  double memory_of_prefill(const Tensor<Token, 2>& tokens) {
    return bench::heap_needed_by([&] {
      typename Model::State state;
      Tensor<float, 3> result;
      model.step(view(tokens), result, state);
    });
  }
  double memory_of_answer(const Tensor<Token, 2>& tokens) {
    if constexpr (Gated<Model>)
      return bench::heap_needed_by([&] {
        typename Model::State state;
        const auto output = model.infer(view(tokens), {}, state);
      });
    else
      return memory_of_prefill(tokens);
  }
  double memory_of_forward(const Tensor<Token, 2>& tokens) {
    return bench::heap_needed_by([&] {
      typename Model::Cache fresh;
      Tensor<float, 3> result;
      model.forward(view(tokens), result, fresh);
    });
  }
};

// Times `calls` on both models, window by window, in turns that begin with each of them as often. A turn starts with a
// call that is not timed: the other model has had the cache.
template <class A, class B, class... Calls>
auto in_turns(A& a, B& b, const std::vector<Tensor<Token, 2>>& windows, std::size_t count, Index rounds,
              Calls&&... calls) {
  using Pair = std::pair<Timings, Timings>;
  std::array<Pair, sizeof...(Calls)> timings;
  for (auto& [first, second] : timings) first.seconds.resize(count), second.seconds.resize(count);
  const auto turn = [&](auto& subject, Timings Pair::*of_subject, std::size_t i) {
    std::get<0>(std::tie(calls...))(subject, windows[i]);
    std::size_t way = 0;
    ((timings[way++].*of_subject).seconds[i].push_back(calls(subject, windows[i])), ...);
  };
  for (Index round = 0; round < rounds; ++round)
    for (std::size_t i = 0; i < count; ++i) {
      const bool a_first = (static_cast<Index>(i) + round) % 2 == 0;
      if (a_first) turn(a, &Pair::first, i);
      turn(b, &Pair::second, i);
      if (!a_first) turn(a, &Pair::first, i);
    }
  return timings;
}

template <class Model>
Json score(const Model& model, TokenSpan tokens, Index length) {
  const Evaluation evaluation = evaluate(model, tokens, {.window = length, .batch_size = 32});
  return {{"nats", evaluation.nats},
          {"perplexity", evaluation.perplexity},
          {"predicted_tokens", evaluation.predicted_tokens}};
}

// Nats of one prediction.
double loss_of(std::span<const float> logits, Token target) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return std::log(sum) + largest - static_cast<double>(logits[static_cast<std::size_t>(target)]);
}

// What becomes of the tokens of a text under pressure: lanes, energies, how many are refused, and the loss of those
// that are emitted, beside that of a reference model on the same tokens.
template <Gated Model, class Reference>
Json verify(const Model& model, Reference& reference, TokenSpan tokens, Index length, double pressure) {
  ConsecutiveWindows windows(tokens, length);
  TokenBatch batch;
  double sum = 0, reference_sum = 0, refused = 0, escalated = 0, layers = 0, bound = 0;
  std::array<double, std::size(all_compute_lanes)> lanes{};
  std::vector<double> energies;
  while (windows.next(/*batch_size=*/32, batch)) {
    typename Model::State state;
    const auto output = model.infer(view(std::as_const(batch.inputs)), {.pressure = pressure}, state);
    reference.model.forward(view(std::as_const(batch.inputs)), reference.logits, reference.cache);
    bound = output.bound();
    refused += static_cast<double>(output.refused());
    for (Index b = 0; b < output.batch(); ++b)
      for (Index t = 0; t < output.tokens(); ++t) {
        const TokenTrace& trace = output.trace(b, t);
        ++lanes[static_cast<std::size_t>(trace.lane)];
        escalated += trace.escalated;
        layers += static_cast<double>(trace.layers_used);
        if (const auto* emission = std::get_if<Emission>(&output.at(b, t))) {
          sum += loss_of(output.logits(*emission), batch.targets(b, t));
          reference_sum +=
              loss_of({&reference.logits(b, t, 0), static_cast<std::size_t>(reference.logits.dimension(2))},
                      batch.targets(b, t));
          energies.push_back(emission->energy());
        }
      }
  }
  const double emitted = static_cast<double>(energies.size()), count = emitted + refused;
  require(emitted > 0, "latency_pair", "emitted tokens", "at least one", emitted);
  Json json{{"pressure", pressure},
            {"tokens", count},
            {"perplexity", std::exp(sum / emitted)},
            {"standard_perplexity", std::exp(reference_sum / emitted)}};
  for (const ComputeLane lane : all_compute_lanes)
    json["lanes"][name_of(lane)] = lanes[static_cast<std::size_t>(lane)] / count;
  json["layers_used"] = layers / count;
  json["escalated_by_verification"] = escalated / count;
  json["refused"] = refused / count;
  json["energy"] = summary_of(energies);
  json["energy_bound"] = bound;
  return json;
}

template <class Model>
Json describe(Subject<Model>& subject, const Options& options, const Tensor<Token, 2>& batch) {
  const Index parameters = count_parameters(subject.model);
  return {{"folder", subject.folder},
          {"model", Model::model_type},
          {"parameters", parameters},
          {"weight_bytes", static_cast<double>(parameters) * sizeof(float)},
          {"flops_per_token", flops(subject.model.config, options.length)},
          {"prefill_bytes", subject.memory_of_prefill(batch)},
          {"answer_bytes", subject.memory_of_answer(batch)},
          {"forward_bytes", subject.memory_of_forward(batch)}};
}

template <LanguageModel First, LanguageModel Second>
Json measure(const std::string& first_folder, const std::string& second_folder, const std::string& text,
             const Options& options) {
  Subject<First> first(first_folder);
  Subject<Second> second(second_folder);
  for (const Index vocabulary : {first.model.config.vocab_size, second.model.config.vocab_size})
    require(vocabulary == 256, "latency_pair", "vocab_size", "256: a model of bytes", vocabulary);
  const TokenDataset data(ByteTokenizer{}.encode(MappedFile(text).text()));
  const TokenSpan validation = data.validation();
  const auto windows = spread_windows(validation, options.length, options.windows);
  Tensor<Token, 2> batch(options.batch, options.length);
  for (Index row = 0; row < options.batch; ++row)
    std::copy_n(windows[static_cast<std::size_t>(row) % windows.size()].data(), options.length, &batch(row, 0));

  Json json;
  json["architecture"] = simd::architecture();
  json["compiler"] = bench::compiler();
  json["threads"] = num_threads();
  json["length"] = options.length;
  json["windows"] = options.windows;
  json["rounds"] = options.rounds;
  json["batch"] = options.batch;
  json["heap_measured"] = bench::measures_heap;
  json["fma_peak"] = bench::fma_peak<float>(5);
  Json a = describe(first, options, batch), b = describe(second, options, batch);
  const auto add = [&](const char* name, const std::pair<Timings, Timings>& timings) {
    a[name] = timings.first.summary();
    b[name] = timings.second.summary();
  };
  const auto decoded = static_cast<std::size_t>(std::min(options.decode_windows, options.windows));
  const std::vector<Tensor<Token, 2>> batches(3, batch);
  const auto forward = [](auto& subject, const auto& tokens) { return subject.time_forward(tokens); };
  const auto prefill = [](auto& subject, const auto& tokens) { return subject.time_prefill(tokens); };
  const auto answer = [](auto& subject, const auto& tokens) { return subject.time_answer(tokens); };
  const auto decode = [](auto& subject, const auto& tokens) { return subject.time_decode(tokens); };
  const auto latencies = in_turns(first, second, windows, windows.size(), options.rounds, forward, prefill, answer);
  add("forward", latencies[0]);
  add("prefill", latencies[1]);
  add("answer", latencies[2]);
  add("decode", in_turns(first, second, windows, decoded, options.rounds, decode)[0]);
  add("batch_answer", in_turns(first, second, batches, batches.size(), 1, answer)[0]);
  const auto at_most = [&](Index count) {
    return count > 0 ? validation.first(std::min(validation.size(), static_cast<std::size_t>(count))) : validation;
  };
  a.update(score(first.model, at_most(options.score_tokens), options.length));
  b.update(score(second.model, at_most(options.score_tokens), options.length));
  if constexpr (Gated<Second>)
    for (const double pressure : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      Json point = verify(second.model, first, at_most(options.verify_tokens), options.length, pressure);
      const auto timings =
          in_turns(first, second, windows, windows.size(), /*rounds=*/1,
                   [&](auto& subject, const auto& window) { return subject.time_answer(window, pressure); })[0];
      point["answer"] = timings.second.summary();
      point["standard_answer"] = timings.first.summary();
      b["verified"].push_back(point);
    }
  json["models"] = {a, b};
  return json;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options;
  for (int i = 4; i < argc; ++i)
    require(set_option(options, argv[i]), "latency_pair", "option", "a known one", argv[i]);
  if (argc < 4)
    return std::fputs("usage: latency_pair STANDARD_FOLDER OTHER_FOLDER TEXT [--threads=1 ...]\n", stderr), 2;
  set_num_threads(static_cast<int>(options.threads));
  const std::string first = argv[1], second = argv[2], text = argv[3];
  const bool gated = read_json(std::filesystem::path(second) / "config.json").value("model_type", "") == "cgt";
  using Standard = TransformerModel<float>;
  const Json json = gated ? measure<Standard, CoherenceGatedTransformer<float>>(first, second, text, options)
                          : measure<Standard, Standard>(first, second, text, options);
  std::printf("%s\n", json.dump().c_str());
} catch (const std::exception& error) {
  std::fprintf(stderr, "latency_pair: %s\n", error.what());
  return 2;
}
