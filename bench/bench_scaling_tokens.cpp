// Time and heap of every attention against the number of tokens T: one layer of d = 64 (two heads of 32) on one
// sequence, T doubling from 512 to 65,536. Prints a table and, with --out PREFIX, writes PREFIX.csv, PREFIX_time.svg
// and PREFIX_heap.svg.
//
//   --only a,b    attentions whose name contains a or b        --from, --to   the range of T
//   --limit S     a pass that would take longer (four times its time at T/2) is left out, and the table says so
//   --threads N
//   --rows FILE   measures nothing: slopes and charts of what earlier runs wrote, their CSV files one after another
//
// forward, backward: the best of a few passes, or the first where that takes over a second. heap: what forward and
// backward need at once beyond the layer, its gradient and the input, in bytes a token, and the largest block of it.
// A buffer of T² floats would be 4·T bytes a token.
//
// Sheaf attention sees tokens of kinds that lie apart, in random order; its block-sparse form skips the blocks of other
// kinds. Of "16 kinds" a row sees 1/16 of all keys: T² pairs, but fewer. Where a new kind comes up every 256 tokens and
// old ones go on, a kind has a few hundred keys at any T.
#include "scaling.hpp"
#include "support.hpp"

#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/kuramoto/phase_attention.hpp"
#include "rbar/kuramoto/phase_modulated_attention.hpp"
#include "rbar/kuramoto/torus_attention.hpp"
#include "rbar/nn/ssm.hpp"
#include "rbar/routing/routed_attention.hpp"
#include "rbar/sheaf/sheaf_attention.hpp"

#include <optional>
#include <thread>

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;
using bench::Options;

constexpr Index width = 64, heads = 2;

struct Measured {
  Index tokens = 0;
  std::optional<double> forward = {}, backward = {};  // seconds; none: left out
  double heap = 0, largest = 0;                       // bytes
};
struct Attention {
  std::string name;
  std::vector<Measured> rows;
};

// Token t is of one of the kinds(t) kinds so far: a centre of its own, and a little noise.
Tensor<float, 3> tokens_of_kinds(Index tokens, auto&& kinds) {
  Rng rng(1);
  std::vector<float> centers;
  for (Index i = 0; i < kinds(tokens) * width; ++i) centers.push_back(static_cast<float>(rng.normal(0, 4)));
  Tensor<float, 3> x(1, tokens, width);
  for (Index t = 0; t < tokens; ++t) {
    const auto kind = static_cast<Index>(rng.below(static_cast<std::uint64_t>(kinds(t))));
    for (Index i = 0; i < width; ++i)
      x(0, t, i) = centers.data()[kind * width + i] + static_cast<float>(rng.uniform(-0.8, 0.8));
  }
  return x;
}
Tensor<float, 3> random_tokens(Index tokens) {
  Rng rng(1);
  Tensor<float, 3> x(1, tokens, width);
  for (float& value : elements(x)) value = static_cast<float>(rng.normal());
  return x;
}

template <class Layer>
struct Passes {
  const Layer& layer;
  const Tensor<float, 3>& x;
  Layer grad;
  Tensor<float, 3> y, dx, dstate;
  typename Layer::Cache cache;

  static constexpr bool has_state = requires(Layer l) { l.coupling_map; };  // a second input, here x too

  void forward() {
    if constexpr (has_state)
      layer.forward(x, x, y, cache);
    else
      layer.forward(x, y, cache);
  }
  void backward() {
    if constexpr (has_state)
      layer.backward(y, cache, dx, dstate, grad);
    else
      layer.backward(y, cache, dx, grad);
  }
};

double best(double first, auto&& body) { return first > 1 ? first : std::min(first, bench::best_seconds(body)); }

// A thread of its own: what its kernels keep from call to call is counted, and gone at the end.
template <class Layer>
Measured measure(const Layer& layer, const Tensor<float, 3>& x, bool with_backward) {
  Measured row{.tokens = x.dimension(1)};
  std::thread([&] {
    Passes<Layer> passes{layer, x, zeros_like(layer), {}, {}, {}, {}};
    double first = 0, first_backward = 0;
    row.heap = bench::heap_needed_by([&] {
      first = bench::best_seconds([&] { passes.forward(); }, 1);
      if (with_backward) first_backward = bench::best_seconds([&] { passes.backward(); }, 1);
    });
    row.largest = static_cast<double>(bench::heap_largest.load());
    row.forward = best(first, [&] { passes.forward(); });
    if (with_backward) row.backward = best(first_backward, [&] { passes.backward(); });
  }).join();
  return row;
}

// make_input(T) -> x; make_layer(x) -> the layer to run on it.
void sweep(std::vector<Attention>& all, const Options& options, std::string name, auto&& make_input,
           auto&& make_layer) {
  if (!options.wants("only", name)) return;
  Attention& attention = all.emplace_back(Attention{std::move(name), {}});
  double forward_before = 0, backward_before = 0;
  for (Index tokens = options.count("from"); tokens <= options.count("to"); tokens *= 2) {
    Measured row{.tokens = tokens};
    if (4 * forward_before <= options.number("limit")) {
      const Tensor<float, 3> x = make_input(tokens);
      const auto layer = make_layer(x);
      row = measure(layer, x, 4 * backward_before <= options.number("limit"));
    }
    forward_before = row.forward.value_or(HUGE_VAL), backward_before = row.backward.value_or(HUGE_VAL);
    const auto seconds = [](std::optional<double> time) {
      char text[32];
      std::snprintf(text, sizeof text, "%10.3f ms", time.value_or(0) * 1e3);
      return time ? std::string(text) : std::string("    left out");
    };
    const double bytes_a_token = row.heap / static_cast<double>(tokens);
    std::printf("%-36s %6ld  %s  %s  %8.0f B/token  largest block %6.0f B/token%s\n", attention.name.c_str(),
                static_cast<long>(tokens), seconds(row.forward).c_str(), seconds(row.backward).c_str(), bytes_a_token,
                row.largest / static_cast<double>(tokens), row.forward && !row.backward ? "  (forward alone)" : "");
    std::fflush(stdout);
    attention.rows.push_back(row);
  }
}

MultiHeadAttentionConfig dot_product(bool causal) {
  MultiHeadAttentionConfig config;
  config.d_model = width, config.n_heads = heads, config.causal = causal;
  return config;
}

// Queries and keys through one map, so that a kind agrees with itself.
SheafAttention<float> sheaf(Rng& rng, bool sparse) {
  SheafAttentionConfig config;
  config.d_model = width, config.n_heads = heads;
  config.sparsity.enabled = sparse;
  config.sparsity.clusters = 1024;
  SheafAttention<float> layer(config, rng);
  layer.rho_key = layer.rho_query;
  return layer;
}

// Its threshold has learned from the very tokens it is timed on.
RoutedAttention<float> routed(Rng& rng, KeyValues key_values, const Tensor<float, 3>& x) {
  RoutedAttentionConfig config;
  config.router.router.d_model = width;
  config.router.router.route_frac = 0.15;
  config.n_heads = heads;
  config.key_values = key_values;
  RoutedAttention<float> layer(config, rng);
  typename RoutedAttention<float>::Cache cache;
  layer.router.forward(x, cache.router);
  layer.adapt(cache);
  return layer;
}

std::vector<Attention> measure_all(const Options& options) {
  std::vector<Attention> all;
  Rng rng(2);
  const auto layer_of = [&](auto&& make) { return [&rng, make](const Tensor<float, 3>& x) { return make(rng, x); }; };
  const auto run = [&](const char* name, auto&& make) { sweep(all, options, name, random_tokens, layer_of(make)); };
  const auto run_kinds = [&](const char* name, auto&& kinds, bool sparse) {
    sweep(
        all, options, name, [&](Index tokens) { return tokens_of_kinds(tokens, kinds); },
        [&](const Tensor<float, 3>&) { return sheaf(rng, sparse); });
  };
  const auto sixteen = [](Index) { return Index{16}; };
  const auto growing = [](Index t) { return 1 + t / 256; };

  run("dot product (full)", [](Rng& r, auto&) { return MultiHeadAttention<float>(dot_product(false), r); });
  run("dot product (causal)", [](Rng& r, auto&) { return MultiHeadAttention<float>(dot_product(true), r); });
  run_kinds("sheaf (dense)", sixteen, false);
  run_kinds("block-sparse sheaf (16 kinds)", sixteen, true);
  run_kinds("block-sparse sheaf (growing kinds)", growing, true);
  run("CoRT (share .15 kv=all)", [](Rng& r, auto& x) { return routed(r, KeyValues::all, x); });
  run("CoRT (share .15 kv=routed)", [](Rng& r, auto& x) { return routed(r, KeyValues::routed, x); });
  run("phase-modulated (PMA)", [&](Rng& r, auto& x) {
    PhaseModulatedAttentionConfig config;
    config.d_model = width, config.n_heads = heads, config.max_seq_len = x.dimension(1);
    return PhaseModulatedAttention<float>(config, r);
  });
  run("torus", [](Rng& r, auto&) { return KuramotoAttention<float>({.d_model = width, .n_heads = heads}, r); });
  run("phase attention (Kuramoto)", [](Rng& r, auto&) {
    PhaseAttentionConfig config;
    config.d_model = width, config.kuramoto.n_heads = heads;
    return PhaseAttention<float>(config, r);
  });
  run("selective state space", [](Rng& r, auto&) {
    SelectiveSSMConfig config;
    config.d_model = width;
    return SelectiveSSM<float>(config, r);
  });
  return all;
}

// --- what is made of it -------------------------------------------------------------------------------------------

LineSeries series_of(const Attention& attention, auto&& value /*(row) -> optional<double>*/) {
  LineSeries line{.name = attention.name, .markers = true};
  for (const Measured& row : attention.rows)
    if (const auto y = value(row)) {
      line.x.push_back(static_cast<double>(row.tokens));
      line.y.push_back(*y);
    }
  return line;
}
std::optional<double> heap_of(const Measured& row) {
  return row.backward && bench::measures_heap ? std::optional(row.heap) : std::nullopt;
}

void print_slopes(const std::vector<Attention>& all) {
  std::printf("\nslopes over the last doublings (2: quadratic, 1: linear)\n%-36s %8s %9s %6s\n", "", "forward",
              "backward", "heap");
  for (const Attention& attention : all) {
    const auto of = [&](auto&& value) { return bench::slope(series_of(attention, value), 3); };
    std::printf("%-36s %8.2f %9.2f %6.2f\n", attention.name.c_str(), of([](auto& row) { return row.forward; }),
                of([](auto& row) { return row.backward; }), of(heap_of));
  }
}

constexpr const char* header = "attention,tokens,forward_s,backward_s,heap_bytes,largest_block_bytes";

// A pass that was left out is an empty cell.
std::string csv(const std::vector<Attention>& all) {
  std::string text = std::string(header) + "\n";
  const auto number = [](std::optional<double> value) { return value ? detail::format_line(",%.6g", *value) : ","; };
  for (const Attention& attention : all)
    for (const Measured& row : attention.rows)
      text += attention.name + "," + std::to_string(row.tokens) + number(row.forward) + number(row.backward) +
              detail::format_line(",%.0f,%.0f\n", row.heap, row.largest);
  return text;
}
std::vector<Attention> read_csv(const std::string& path) {
  std::vector<Attention> all;
  for (const auto& cells : bench::read_rows(path, header)) {
    if (all.empty() || all.back().name != cells[0]) all.push_back({cells[0], {}});
    const auto number = [&](std::size_t i) { return std::atof(cells[i].c_str()); };
    const auto seconds = [&](std::size_t i) { return cells[i].empty() ? std::nullopt : std::optional(number(i)); };
    all.back().rows.push_back({std::atol(cells[1].c_str()), seconds(2), seconds(3), number(4), number(5)});
  }
  return all;
}

LineChart chart(const std::vector<Attention>& all, std::string title, std::string y_label, auto&& value) {
  LineChart chart{.title = std::move(title), .x_label = "tokens", .y_label = std::move(y_label), .log_x = true};
  chart.log_y = true;
  for (const Attention& attention : all) chart.series.push_back(series_of(attention, value));
  return chart;
}

}  // namespace

int main(int argc, char** argv) try {
  Options options{
      {{"only", ""}, {"from", "512"}, {"to", "65536"}, {"limit", "30"}, {"threads", "1"}, {"rows", ""}, {"out", ""}}};
  options.read(argc, argv);
  set_num_threads(static_cast<int>(std::max(1L, options.count("threads"))));
  std::printf("%s, %s, %d threads, fp32 FMA peak %.0f GFLOP/s; d = %ld, %ld heads\n", simd::architecture(),
              bench::compiler().c_str(), num_threads(), bench::fma_peak<float>(5) * 1e-9, static_cast<long>(width),
              static_cast<long>(heads));
  const std::vector<Attention> all = options["rows"].empty() ? measure_all(options) : read_csv(options["rows"]);
  print_slopes(all);
  const std::string& out = options["out"];
  if (out.empty()) return 0;
  bench::write_text(out + ".csv", csv(all));
  bench::write_text(out + "_time.svg", line_chart_svg(chart(all, "Forward pass of one layer, d = 64", "seconds",
                                                            [](auto& row) { return row.forward; })));
  bench::write_text(out + "_heap.svg",
                    line_chart_svg(chart(all, "Heap of a forward and backward pass, d = 64", "bytes", heap_of)));
} catch (const std::exception& error) {
  return std::fprintf(stderr, "%s\n", error.what()), 1;
}
