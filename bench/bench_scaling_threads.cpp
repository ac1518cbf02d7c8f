// Speed-up with threads: training steps of --batch sequences of --length tokens, prefill of one sequence of --prompt
// tokens, and decoding of one token after another behind it, for every language model at d = 512. Prints a table and,
// with --out PREFIX, writes PREFIX.csv and PREFIX_{training,prefill,decoding}.svg. The FMA peak and the copy bandwidth
// of as many threads, measured beside, are what the machine itself offers; training rows say what share of that peak
// the multiply-adds of dense layers alone take. `products`: as many matrix products side by side, each by one thread on
// its own numbers, which says what those threads could do if they never met. Every count must give the same bits: exit
// status 1 where one does not.
//
//   --threads 1,2,4,8,16   by default powers of two up to the hardware's threads
//   --only a,b             models whose name contains a or b      --layers N
//   --repeats N            the best of so many; of prompts, of those in half a second at least
//   --rows FILE            measures nothing: charts of what earlier runs wrote, their CSV files one after another
#include "scaling.hpp"
#include "support.hpp"
#include "training_step.hpp"

#include "rbar/model/cgt.hpp"
#include "rbar/model/cort.hpp"
#include "rbar/model/kuramoto_lm.hpp"
#include "rbar/model/phasegpt.hpp"
#include "rbar/model/pma_lm.hpp"

#include <cstring>
#include <map>
#include <thread>

namespace {

using namespace rbar;
using bench::now;
using bench::Options;

enum class Task { training, prefill, decoding };
constexpr Task all_tasks[] = {Task::training, Task::prefill, Task::decoding};
constexpr const char* name_of(Task task) {
  constexpr const char* names[] = {"training", "prefill", "decoding"};
  return names[static_cast<int>(task)];
}

struct Timing {
  std::string model;
  Task task;
  int threads;
  double tokens, seconds;  // best of the repeats
  std::uint64_t digest;    // of all numbers that came out
  double speedup = 1;      // over the first count of threads
  bool same_bits = true;   // as there
};
struct Machine {
  int threads;
  double peak, bandwidth, products;
};

struct SeparateResult {};

// FLOP/s of products [512, 512]·[512, 2048] of one thread each.
double separate_products() {
  constexpr Index m = 512, n = 2048, k = 512, each = 16;
  const Index threads = num_threads();
  std::vector<float> left(static_cast<std::size_t>(threads * m * k), 0.5f);
  std::vector<float> right(static_cast<std::size_t>(threads * n * k), 0.25f);
  const auto run = [&] {
    parallel_for(threads * each, 1, [&](Index product, Index) {
      const Index own = product / each;
      simd::blocked_gemm<float>(false, true, m, n, k, left.data() + own * m * k, k, right.data() + own * n * k, k,
                                simd::thread_scratch<float, SeparateResult>(m * n), n, false);
    });
  };
  run();
  return 2.0 * static_cast<double>(m * n * k * threads * each) / bench::best_seconds(run, 3);
}

// FNV-1a over 4-byte words.
struct Digest {
  std::uint64_t value = 14695981039346656037u;
  void add(std::span<const float> numbers) {
    for (const float number : numbers) {
      std::uint32_t word;
      std::memcpy(&word, &number, sizeof word);
      value = (value ^ word) * 1099511628211u;
    }
  }
};

double weights_in(auto& layer) {
  double count = 0;
  layer.linears([&](const auto& map, const auto&... tied) {
    count += static_cast<double>((map.weight.size() + ... + tied.size()));
  });
  return count;
}
// Weights of dense layers that the last step multiplied with, a token: what a router left out does not count.
template <class Model>
double dense_weights(bench::TrainingStep<Model>& step) {
  const auto share_of = [&](const RoutedRows& rows) {
    return static_cast<double>(rows.count()) / static_cast<double>(step.tokens.size());
  };
  double weights = weights_in(step.model);
  if constexpr (std::is_same_v<Model, CoRTModel<float>>)
    for (std::size_t l = 0; l < step.model.layers.size(); ++l) {
      RoutedAttention<float>& routed = step.model.layers[l].routed;
      const double share = share_of(step.cache.layers[l].routed.router.routing.attention_rows());
      const double left_out = routed.config.key_values == KeyValues::all ? 0.5 : 1;  // queries and outputs; or all
      weights -= weights_in(routed.attention) * (1 - share) * left_out + weights_in(routed.mixer) * share;
    }
  if constexpr (std::is_same_v<Model, CoherenceGatedTransformer<float>>) {
    const CGTConfig& config = step.model.config;
    const double keys = static_cast<double>(config.n_kv_heads) / static_cast<double>(config.n_heads);
    for (Index l = config.reflex_end(); l < config.n_layers; ++l) {
      CGTLayer<float>& layer = step.model.stack.layers[static_cast<std::size_t>(l)];
      const double share = share_of(step.cache.stack.sheet.active[static_cast<std::size_t>(l - config.reflex_end())]);
      const double experts =
          layer.kind == LayerKind::deep ? static_cast<double>(config.top_k) / static_cast<double>(config.n_experts) : 1;
      weights -=
          weights_in(layer.attention) * (1 - share) / (1 + keys) + weights_in(layer.block) * (1 - share * experts);
    }
  }
  return weights;
}

template <class Model>
struct Workload {
  const Options& options;
  std::string name;
  typename Model::Config config;
  std::vector<Timing>& timings;
  const std::vector<Machine>& machine;

  void run(int threads) {
    set_num_threads(threads);
    const Index batch = options.count("batch"), length = options.count("length");
    bench::TrainingStep<Model> step(config, batch, length);
    Digest digest;
    const auto loss = static_cast<float>(step());
    digest.add({&loss, 1});
    for (const auto& part : step.parameters.parts()) digest.add(part.values());
    double best = HUGE_VAL, flops = 0;  // a second, of dense layers: routers do not choose the same in every step
    for (long i = 0; i < options.count("repeats"); ++i) {
      const double seconds = bench::best_seconds([&] { step(); }, 1);
      best = std::min(best, seconds);
      // y, dx and dW: a multiplication and an addition of every weight each.
      flops = std::max(flops, 6 * dense_weights(step) * static_cast<double>(batch * length) / seconds);
    }
    record(Task::training, batch * length, best, digest, flops);
    stream(step.model);
  }

 private:
  void stream(const Model& model) {
    const Index prompt_length = options.count("prompt");
    Tensor<Token, 2> prompt(1, prompt_length), next(1, 1);
    Rng rng(3);
    for (Token& token : elements(prompt)) token = static_cast<Token>(rng.below(256));
    typename Model::State state;
    Tensor<float, 3> logits;
    const auto prefill = [&] {
      state = {};
      model.step(view(std::as_const(prompt)), logits, state);
    };
    prefill();
    Digest digest;
    digest.add(elements(std::as_const(logits)));
    record(Task::prefill, prompt_length, repeated(prefill), digest);

    next(0, 0) = 7;
    double best = HUGE_VAL;
    Digest decoded;
    for (Index i = 0; i < new_tokens; ++i) {
      const double start = now();
      model.step(view(std::as_const(next)), logits, state);
      best = std::min(best, now() - start);
      decoded.add(elements(std::as_const(logits)));
    }
    record(Task::decoding, 1, best, decoded);
  }

  double repeated(auto&& body) const {
    double best = HUGE_VAL, spent = 0;
    for (long i = 0; i < options.count("repeats") || spent < least_seconds; ++i) {
      const double seconds = bench::best_seconds(body, 1);
      best = std::min(best, seconds);
      spent += seconds;
    }
    return best;
  }
  void record(Task task, Index tokens, double seconds, const Digest& digest, double dense_flops = 0) {
    Timing timing{name, task, num_threads(), static_cast<double>(tokens), seconds, digest.value};
    for (const Timing& first : timings)
      if (first.model == name && first.task == task) {
        timing.speedup = first.seconds / seconds;
        timing.same_bits = first.digest == digest.value;
        break;
      }
    std::printf("%-22s %-9s %3d threads %10.3f ms %10.0f tokens/s  speed-up %5.2f  efficiency %.2f  bits %s",
                name.c_str(), name_of(task), timing.threads, seconds * 1e3, timing.tokens / seconds, timing.speedup,
                timing.speedup / timing.threads, timing.same_bits ? "same" : "DIFFERENT");
    if (dense_flops > 0)
      for (const Machine& m : machine)
        if (m.threads == timing.threads) std::printf("  dense layers %.2f of the peak", dense_flops / m.peak);
    std::printf("\n");
    std::fflush(stdout);
    timings.push_back(std::move(timing));
  }

 public:
  static constexpr Index new_tokens = 64;
  // A prompt of few milliseconds is over before the machine has once left all threads alone.
  static constexpr double least_seconds = 0.5;
};

struct Run {
  const Options& options;
  std::vector<int> counts;
  std::vector<Machine> machine;
  std::vector<Timing> timings = {};

  template <class Model>
  void model(const char* name, typename Model::Config config) {
    if (!options.wants("only", name)) return;
    config.vocab_size = 256;
    config.max_seq_len =
        std::max<Index>(options.count("length"), options.count("prompt") + Workload<Model>::new_tokens);
    config.dropout = 0;
    Workload<Model> workload{options, name, config, timings, machine};
    for (const int count : counts) workload.run(count);
  }

  void every_model() {
    const Index layers = options.count("layers");
    model<TransformerModel<float>>("standard", TransformerConfig::gpt2_style(256, 512, layers, 8, 0));
    CoRTConfig cort = CoRTConfig::small();
    cort.n_layers = layers;
    model<CoRTModel<float>>("CoRT (kv=all)", cort);
    cort.key_values = KeyValues::routed;
    model<CoRTModel<float>>("CoRT (kv=routed)", cort);
    PMAConfig pma;
    pma.d_model = 512, pma.ssm_blocks = layers / 2, pma.pma_blocks = layers - layers / 2;
    model<PhaseModulatedAttentionLM<float>>("PMA", pma);
    KuramotoLMConfig torus;
    torus.d_model = 512, torus.n_heads = 8, torus.n_layers = layers;
    model<KuramotoLM<float>>("torus", torus);
    PhaseGPTConfig phasegpt;
    phasegpt.d_model = 512, phasegpt.n_heads = 8, phasegpt.n_layers = layers;
    model<PhaseGPT<float>>("PhaseGPT", phasegpt);
    CGTConfig cgt = CGTConfig::small();
    cgt.n_layers = layers;
    model<CoherenceGatedTransformer<float>>("CGT", cgt);
  }
};

std::vector<int> thread_counts(const Options& options) {
  std::vector<int> counts;
  for (const std::string& part : options.list("threads")) counts.push_back(std::max(1, std::atoi(part.c_str())));
  const int most = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int count = 1; options.list("threads").empty() && count <= most; count *= 2) counts.push_back(count);
  return counts;
}

std::vector<Machine> machine_at(const std::vector<int>& counts) {
  std::vector<Machine> list;
  for (const int count : counts) {
    set_num_threads(count);
    bench::fma_peak<float>(100);  // new threads take a moment to find their cores
    list.push_back({count, bench::fma_peak<float>(20), bench::copy_bandwidth(5), separate_products()});
    const Machine& m = list.back();
    std::printf(
        "%3d threads: fp32 FMA peak %.0f GFLOP/s (%.2f times), copy %.0f GB/s (%.2f times), separate products %.0f "
        "GFLOP/s (%.2f times)\n",
        count, m.peak * 1e-9, m.peak / list[0].peak, m.bandwidth * 1e-9, m.bandwidth / list[0].bandwidth,
        m.products * 1e-9, m.products / list[0].products);
  }
  return list;
}

constexpr const char* header = "model,task,threads,tokens_per_s,speedup,efficiency,same_bits";
constexpr const char* machine_row = "machine";  // its task: what is measured, its speed-up: over the first count

std::string csv(const std::vector<Timing>& timings, const std::vector<Machine>& machine) {
  std::string text = std::string(header) + "\n";
  const auto add = [&](const std::string& name, const char* task, int threads, double rate, double speedup, bool same) {
    text += name + "," + task +
            detail::format_line(",%d,%.6g,%.4g,%.4g,%d\n", threads, rate, speedup, speedup / threads,
                                static_cast<int>(same));
  };
  for (const Machine& m : machine) {
    add(machine_row, "FMA peak", m.threads, m.peak, m.peak / machine[0].peak, true);
    add(machine_row, "copy bandwidth", m.threads, m.bandwidth, m.bandwidth / machine[0].bandwidth, true);
    add(machine_row, "products", m.threads, m.products, m.products / machine[0].products, true);
  }
  for (const Timing& t : timings)
    add(t.model, name_of(t.task), t.threads, t.tokens / t.seconds, t.speedup, t.same_bits);
  return text;
}

void read_csv(const std::string& path, std::vector<Timing>& timings, std::vector<Machine>& machine) {
  for (const auto& cells : bench::read_rows(path, header)) {
    const int threads = std::atoi(cells[2].c_str());
    const double rate = std::atof(cells[3].c_str());
    if (cells[0] != machine_row) {
      const auto task =
          std::find_if(std::begin(all_tasks), std::end(all_tasks), [&](Task t) { return name_of(t) == cells[1]; });
      require(task != std::end(all_tasks), "read_csv", "task", "training, prefill or decoding", cells[1]);
      timings.push_back({cells[0], *task, threads, rate, 1, 0, std::atof(cells[4].c_str()), cells[6] == "1"});
      continue;
    }
    auto at = std::find_if(machine.begin(), machine.end(), [&](const Machine& m) { return m.threads == threads; });
    if (at == machine.end()) at = machine.insert(at, Machine{threads, 0, 0, 0});
    (cells[1] == "FMA peak" ? at->peak : cells[1] == "products" ? at->products : at->bandwidth) = rate;
  }
}

LineChart chart(const std::vector<Timing>& timings, const std::vector<Machine>& machine, Task task) {
  LineChart chart{.title = std::string("Speed-up with threads, ") + name_of(task), .x_label = "threads"};
  chart.y_label = "speed-up";
  chart.log_x = chart.log_y = true;
  std::map<std::string, LineSeries> lines;
  for (const Timing& t : timings) {
    if (t.task != task) continue;
    LineSeries& line = lines[t.model];
    line.name = t.model, line.markers = true;
    line.x.push_back(t.threads), line.y.push_back(t.speedup);
  }
  for (auto& [name, line] : lines) chart.series.push_back(std::move(line));
  LineSeries ideal{.name = "ideal", .faint = true, .dashed = true};
  LineSeries offered{.name = task == Task::decoding ? "copy bandwidth" : "separate products", .dashed = true};
  for (const Machine& m : machine) {
    ideal.x.push_back(m.threads), ideal.y.push_back(m.threads);
    offered.x.push_back(m.threads);
    offered.y.push_back(task == Task::decoding ? m.bandwidth / machine[0].bandwidth : m.products / machine[0].products);
  }
  chart.series.push_back(std::move(ideal));
  chart.series.push_back(std::move(offered));
  return chart;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options{{{"threads", ""},
                   {"only", ""},
                   {"layers", "4"},
                   {"batch", "16"},
                   {"length", "256"},
                   {"prompt", "2048"},
                   {"repeats", "2"},
                   {"rows", ""},
                   {"out", ""}}};
  options.read(argc, argv);
  std::printf("%s, %s, %u hardware threads; d = 512, %s layers, training %s x %s tokens, prefill %s\n",
              simd::architecture(), bench::compiler().c_str(), std::thread::hardware_concurrency(),
              options["layers"].c_str(), options["batch"].c_str(), options["length"].c_str(),
              options["prompt"].c_str());
  Run run{options, thread_counts(options), {}};
  if (options["rows"].empty()) {
    run.machine = machine_at(run.counts);
    run.every_model();
  } else {
    read_csv(options["rows"], run.timings, run.machine);
  }
  const std::string& out = options["out"];
  if (!out.empty()) {
    bench::write_text(out + ".csv", csv(run.timings, run.machine));
    for (const Task task : all_tasks)
      bench::write_text(out + "_" + name_of(task) + ".svg", line_chart_svg(chart(run.timings, run.machine, task)));
  }
  const bool same = std::all_of(run.timings.begin(), run.timings.end(), [](const Timing& t) { return t.same_bits; });
  return same ? 0 : 1;
} catch (const std::exception& error) {
  return std::fprintf(stderr, "%s\n", error.what()), 2;
}
