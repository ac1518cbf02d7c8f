// The selective scan and Mamba's block around it.
//
// scan_*: softplus, recurrence, skip and gate of one sequence, as the layer runs them. Gelem/s counts states moved by
// one token (tokens · channels · 16). `peak_share` is of the copy bandwidth, for the activations that must be read and
// written once; `fma_share` is of the FMA peak, with the operations as written (a multiply-add is two): 21 a state
// forward, the same again and 14 more backward. `speedup` is over the recurrence as a plain loop with std::exp, tokens
// outside and as many channels inside (1, 4, 16 or 64: `plain_block`) as make it fastest there. `difference` is between
// the two, of the largest number of its kind; a large one is an error.
//
// layer_*: the whole block. `scan_share` is the scan's part of the time; `heap_bytes_per_token` what a training step
// takes at once on a thread that has no scratch yet: cache, gradients and that. layer_step: one token of a stream.
#include "rbar/core/random.hpp"
#include "rbar/nn/ssm.hpp"
#include "support.hpp"

#include <cmath>
#include <initializer_list>
#include <thread>
#include <vector>

#include "heap_meter.hpp"  // after all else: it defines malloc

namespace {

using namespace rbar;

constexpr Index states = 16;
constexpr double forward_flops = 21, backward_flops = 21 + 14;

template <class Tensorial>
void fill(Tensorial& tensor, double mean, double deviation, std::uint64_t seed) {
  Rng rng(seed);
  for (float& value : elements(tensor)) value = static_cast<float>(rng.normal(mean, deviation));
}

struct Scan {
  Index tokens, inner, blocks;
  Tensor<float, 2> step, input, gate, selection, out, dout, dstep, dinput, dgate, dselection, state, borders;
  Tensor<float, 2> log_rate, partial;
  Tensor<float, 1> skip, memory;

  Scan(Index tokens_, Index inner_)
      : tokens(tokens_), inner(inner_), blocks((inner + simd::scan_channels - 1) / simd::scan_channels) {
    const Index size = simd::scan_state_size(states);
    for (auto* tensor : {&step, &input, &gate, &out, &dout, &dstep, &dinput, &dgate})
      ensure_shape(*tensor, {tokens, inner});
    ensure_shape(selection, {tokens, 2 * states});
    ensure_shape(dselection, {blocks * tokens, 2 * states});
    ensure_shape(state, {blocks, size});
    ensure_shape(borders, {blocks, simd::scan_chunks(tokens) * size});
    ensure_shape(partial, {blocks, size + simd::scan_channels});
    ensure_shape(log_rate, {inner, states});
    ensure_shape(skip, {inner});
    ensure_shape(memory, {simd::ScanScratch<float>::size(states)});
    fill(step, -4, 1, 1);
    fill(input, 0, 1, 2);
    fill(gate, 0, 1, 3);
    fill(selection, 0, 1, 4);
    fill(dout, 0, 1, 5);
    for (Index e = 0; e < inner; ++e)
      for (Index s = 0; s < states; ++s) log_rate(e, s) = std::log(static_cast<float>(s + 1));
    skip.setConstant(1.0f);
    forward();
  }

  double moved() const { return static_cast<double>(tokens * inner * states); }
  double bytes(double activations) const {
    return sizeof(float) * static_cast<double>(tokens) * (activations * static_cast<double>(inner) + 2.0 * states);
  }
  simd::ScanBlock<float> block(Index channel) const {
    return {tokens,
            std::min(simd::scan_channels, inner - channel),
            states,
            &log_rate(channel, 0),
            &skip(channel),
            &step(0, channel),
            &input(0, channel),
            &gate(0, channel),
            selection.data(),
            inner,
            inner,
            2 * states};
  }
  void forward() {
    state.setZero();
    for (Index b = 0; b < blocks; ++b) {
      const Index channel = b * simd::scan_channels;
      simd::selective_scan(block(channel), &state(b, 0), &borders(b, 0), &out(0, channel), memory.data());
    }
  }
  void backward() {
    for (Index b = 0; b < blocks; ++b) {
      const Index channel = b * simd::scan_channels;
      simd::selective_scan_backward(
          block(channel), &borders(b, 0), &dout(0, channel), &out(0, channel),
          {&dstep(0, channel), &dinput(0, channel), &dgate(0, channel), &dselection(b * tokens, 0), &partial(b, 0),
           &partial(b, simd::scan_state_size(states))},
          memory.data());
    }
  }
};

float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// The recurrence as a plain loop: tokens outside, inside them a block of channels whose states stay in L1; a block of
// one is the channel's own loop.
constexpr Index plain_blocks[] = {1, 4, 16, 64};

void plain_forward(Scan& x, Index block) {
  float rate[64][states], h[64][states];
  for (Index first = 0; first < x.inner; first += block) {
    const Index channels = std::min(block, x.inner - first);
    for (Index c = 0; c < channels; ++c)
      for (Index s = 0; s < states; ++s) rate[c][s] = -std::exp(x.log_rate(first + c, s)), h[c][s] = 0;
    for (Index t = 0; t < x.tokens; ++t) {
      const float *B = &x.selection(t, 0), *C = B + states;
      for (Index c = 0; c < channels; ++c) {
        const Index e = first + c;
        const float step = softplus(x.step(t, e)), drive = step * x.input(t, e), z = x.gate(t, e);
        float y = x.skip(e) * x.input(t, e);
        for (Index s = 0; s < states; ++s) {
          h[c][s] = std::exp(step * rate[c][s]) * h[c][s] + drive * B[s];
          y += C[s] * h[c][s];
        }
        x.out(t, e) = y * z * sigmoid(z);
      }
    }
  }
}

// Keeps a block's states and decays of all tokens, so that no exponential is computed twice.
void plain_backward(Scan& x, Index block, std::vector<float>& kept) {
  const Index row = block * states;
  kept.resize(static_cast<std::size_t>((2 * x.tokens + 1) * row));
  float *h = kept.data(), *a = h + (x.tokens + 1) * row;
  float rate[64][states], carry[64][states], drate[64][states], dskip[64];
  x.dselection.setZero();
  for (Index first = 0; first < x.inner; first += block) {
    const Index channels = std::min(block, x.inner - first);
    std::fill_n(h, row, 0.0f);
    for (Index c = 0; c < channels; ++c) {
      dskip[c] = 0;
      for (Index s = 0; s < states; ++s) {
        rate[c][s] = -std::exp(x.log_rate(first + c, s));
        carry[c][s] = drate[c][s] = 0;
      }
    }
    for (Index t = 0; t < x.tokens; ++t) {
      const float *B = &x.selection(t, 0), *C = B + states;
      for (Index c = 0; c < channels; ++c) {
        const Index e = first + c;
        const float step = softplus(x.step(t, e)), drive = step * x.input(t, e), z = x.gate(t, e), gate = sigmoid(z);
        const float* before = h + t * row + c * states;
        float *after = h + (t + 1) * row + c * states, *decay = a + t * row + c * states;
        float y = x.skip(e) * x.input(t, e);
        for (Index s = 0; s < states; ++s) {
          decay[s] = std::exp(step * rate[c][s]);
          after[s] = decay[s] * before[s] + drive * B[s];
          y += C[s] * after[s];
        }
        x.dgate(t, e) = x.dout(t, e) * y * gate * (1 + z * (1 - gate));
      }
    }
    for (Index t = x.tokens - 1; t >= 0; --t) {
      const float *B = &x.selection(t, 0), *C = B + states;
      float dB[states] = {}, dC[states] = {};
      for (Index c = 0; c < channels; ++c) {
        const Index e = first + c;
        const float r = x.step(t, e), step = softplus(r), u = x.input(t, e), z = x.gate(t, e);
        const float dy = x.dout(t, e) * z * sigmoid(z);
        const float *before = h + t * row + c * states, *after = before + row, *decay = a + t * row + c * states;
        float dstep = 0, ddrive = 0;
        for (Index s = 0; s < states; ++s) {
          const float g = C[s] * dy + carry[c][s];
          dC[s] += dy * after[s];
          dB[s] += g * step * u;
          ddrive += g * B[s];
          carry[c][s] = g * decay[s];
          const float dexponent = carry[c][s] * before[s];
          drate[c][s] += dexponent * step;
          dstep += dexponent * rate[c][s];
        }
        x.dstep(t, e) = (dstep + ddrive * u) * sigmoid(r);
        x.dinput(t, e) = ddrive * step + dy * x.skip(e);
        dskip[c] += dy * u;
      }
      for (Index s = 0; s < states; ++s) {
        x.dselection(t, s) += dB[s];
        x.dselection(t, states + s) += dC[s];
      }
    }
    for (Index c = 0; c < channels; ++c) {
      const Index of = (first + c) / simd::scan_channels, at = (first + c) % simd::scan_channels;
      for (Index s = 0; s < states; ++s) x.partial(of, s * simd::scan_channels + at) = drate[c][s] * rate[c][s];
      x.partial(of, states * simd::scan_channels + at) = dskip[c];
    }
  }
}

// The block that makes plain(block) fastest, here and at this size.
template <class Plain>
Index fastest_block(Plain&& plain) {
  Index fastest = 0;
  double least = 1e300;
  for (const Index block : plain_blocks)
    if (const double seconds = bench::best_seconds([&] { plain(block); }); seconds < least)
      least = seconds, fastest = block;
  return fastest;
}

// Largest difference, of the largest number, with a NaN kept.
double difference(const Tensor<float, 2>& ours, const Tensor<float, 2>& plain) {
  double error = 0, largest = 0;
  for (Index i = 0; i < ours.size(); ++i) {
    const auto expected = static_cast<double>(plain.data()[i]);
    const double apart = std::abs(static_cast<double>(ours.data()[i]) - expected);
    if (!(apart <= error) && !std::isnan(error)) error = apart;
    largest = std::max(largest, std::abs(expected));
  }
  return error / largest;
}
void report_difference(benchmark::State& state, std::initializer_list<double> differences) {
  double worst = 0;
  for (const double one : differences)
    if (!(one <= worst) && !std::isnan(worst)) worst = one;
  state.counters["difference"] = worst;
  if (!(worst <= 1e-4)) state.SkipWithError("the plain loop has other numbers");
}
// Over the blocks of channels.
Tensor<float, 2> sum_of_selections(const Scan& x) {
  Tensor<float, 2> sum = zeros<float, 2>({x.tokens, 2 * states});
  for (Index row = 0; row < x.blocks * x.tokens; ++row)
    for (Index s = 0; s < 2 * states; ++s) sum(row % x.tokens, s) += x.dselection(row, s);
  return sum;
}

void add_fma_share(benchmark::State& state, double flops) {
  state.counters["fma_share"] = state.counters["Gelem/s"] * 1e9 * flops / bench::fma_peak(5);
}

void scan_forward(benchmark::State& state) {
  Scan x(state.range(0), state.range(1)), plain(state.range(0), state.range(1));
  const Index block = fastest_block([&](Index b) { plain_forward(plain, b); });
  bench::measure(
      state, {.bytes = x.bytes(4), .elements = x.moved()}, [&] { x.forward(); }, [&] { plain_forward(plain, block); });
  add_fma_share(state, forward_flops);
  state.counters["plain_block"] = static_cast<double>(block);
  report_difference(state, {difference(x.out, plain.out)});
}
BENCHMARK(scan_forward)
    ->ArgNames({"tokens", "channels"})
    ->Args({512, 512})
    ->Args({2048, 512})
    ->Args({512, 1536})
    ->Apply(bench::standard);

void scan_backward(benchmark::State& state) {
  Scan x(state.range(0), state.range(1)), plain(state.range(0), state.range(1));
  std::vector<float> kept;
  const Index block = fastest_block([&](Index b) { plain_backward(plain, b, kept); });
  bench::measure(
      state, {.bytes = x.bytes(8), .elements = x.moved()}, [&] { x.backward(); },
      [&] { plain_backward(plain, block, kept); });
  add_fma_share(state, backward_flops);
  state.counters["plain_block"] = static_cast<double>(block);
  // partial: dA_log and dD.
  report_difference(
      state, {difference(x.dstep, plain.dstep), difference(x.dinput, plain.dinput), difference(x.dgate, plain.dgate),
              difference(x.partial, plain.partial), difference(sum_of_selections(x), sum_of_selections(plain))});
}
BENCHMARK(scan_backward)
    ->ArgNames({"tokens", "channels"})
    ->Args({512, 512})
    ->Args({2048, 512})
    ->Args({512, 1536})
    ->Apply(bench::standard);

struct Block {
  Rng rng{1};
  SelectiveSSM<float> layer, grad;
  SelectiveSSM<float>::Cache cache;
  Tensor<float, 3> x, y, dx;

  Block(Index tokens, Index d_model)
      : layer({.d_model = d_model}, rng), grad(zeros_like(layer)), x(1, tokens, d_model) {
    fill(x, 0, 1, 2);
    layer.forward(x, y, cache);
  }
  double flops() const {  // of the products and of the scan
    const auto& c = layer.config;
    const auto products = static_cast<double>(c.inner() * (3 * c.d_model + c.selection() + c.rank()));
    return static_cast<double>(x.dimension(1)) *
           (2 * products + forward_flops * static_cast<double>(c.inner() * c.d_state));
  }
};

void layer_forward(benchmark::State& state) {
  Block block(state.range(0), state.range(1));
  bench::measure(state, {.flops = block.flops()}, [&] { block.layer.forward(block.x, block.y, block.cache); });
  Scan scan(state.range(0), block.layer.config.inner());
  state.counters["scan_share"] = bench::best_seconds([&] { scan.forward(); }) /
                                 bench::best_seconds([&] { block.layer.forward(block.x, block.y, block.cache); });
}
BENCHMARK(layer_forward)->ArgNames({"tokens", "d_model"})->Args({512, 256})->Args({512, 768})->Apply(bench::standard);

void layer_training(benchmark::State& state) {
  Block block(state.range(0), state.range(1));
  const auto both = [&](Tensor<float, 3>& y, Tensor<float, 3>& dx, SelectiveSSM<float>::Cache& cache) {
    block.layer.forward(block.x, y, cache);
    block.layer.backward(block.x, cache, dx, block.grad);
  };
  both(block.y, block.dx, block.cache);  // scratch of the pool's threads has grown
  const auto on_a_fresh_thread = [&] {
    std::thread([&] {
      Tensor<float, 3> y, dx;
      SelectiveSSM<float>::Cache cache;
      both(y, dx, cache);
    }).join();
  };
  if (bench::measures_heap)
    state.counters["heap_bytes_per_token"] =
        bench::heap_needed_by(on_a_fresh_thread) / static_cast<double>(state.range(0));
  bench::measure(state, {.flops = 3 * block.flops()}, [&] { both(block.y, block.dx, block.cache); });
  Scan scan(state.range(0), block.layer.config.inner());
  state.counters["scan_share"] = bench::best_seconds([&] {
                                   scan.forward();
                                   scan.backward();
                                 }) /
                                 bench::best_seconds([&] { both(block.y, block.dx, block.cache); });
}
BENCHMARK(layer_training)->ArgNames({"tokens", "d_model"})->Args({512, 256})->Args({512, 768})->Apply(bench::standard);

void layer_step(benchmark::State& state) {
  Block block(1, state.range(0));
  SelectiveSSM<float>::State stream;
  bench::measure(state, {.bytes = sizeof(float) * static_cast<double>(count_parameters(block.layer))},
                 [&] { block.layer.step(block.x, block.y, stream); });
}
BENCHMARK(layer_step)->ArgName("d_model")->Arg(256)->Arg(768)->Apply(bench::standard);

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv); }
