// Mamba's selective state-space block: a causal convolution over the last few tokens, then a scan whose step sizes,
// inputs and read-outs the tokens themselves choose, gated by a second branch,
//   [u | z] = W_in x,   u ← SiLU(conv(u)),   [δ | B | C] = W_x u,   Δ = softplus(W_Δ δ + b_Δ),   A = −exp(A_log),
//   h_t = exp(Δ_t A)∘h_{t−1} + Δ_t u_t B_t,   y_t = C_t·h_t + D∘u_t,   out = W_out (y∘SiLU(z)).
// O(tokens), and a stream's state is O(1) in the tokens seen. Source: Gu, Dao, "Mamba: Linear-Time Sequence Modeling
// with Selective State Spaces", arXiv:2312.00752, and the initial values of its published code. NaN and infinity
// propagate.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/core/parallel.hpp"
#include "rbar/nn/linear.hpp"
#include "rbar/simd/causal_conv.hpp"
#include "rbar/simd/scratch.hpp"
#include "rbar/simd/selective_scan.hpp"

#include <cmath>
#include <iterator>
#include <numeric>
#include <string>
#include <string_view>

namespace rbar {

struct SelectiveSSMConfig {
  Index d_model = 256;
  Index expand = 2;                     // inner channels E a model feature
  Index d_state = 16;                   // S states a channel
  Index d_conv = 4;                     // tokens that the convolution sees
  Index dt_rank = 0;                    // features that Δ is made from; 0: d_model/16, rounded up
  double dt_min = 0.001, dt_max = 0.1;  // Δ at first, log-uniform between them

  Index inner() const { return expand * d_model; }
  Index rank() const { return dt_rank > 0 ? dt_rank : (d_model + 15) / 16; }
  Index selection() const { return rank() + 2 * d_state; }  // width of δ | B | C

  template <class Visit>
  void fields(Visit&& visit) {
    visit("d_model", d_model);
    visit("expand", expand);
    visit("d_state", d_state);
    visit("d_conv", d_conv);
    visit("dt_rank", dt_rank);
    visit("dt_min", dt_min);
    visit("dt_max", dt_max);
  }
  void validate() const {
    constexpr const char* where = "SelectiveSSMConfig";
    require(d_model >= 1, where, "d_model", "at least 1", d_model);
    require(expand >= 1, where, "expand", "at least 1", expand);
    require(d_state >= 1, where, "d_state", "at least 1", d_state);
    require(d_conv >= 1 && d_conv <= simd::max_conv_taps, where, "d_conv",
            "1 to " + std::to_string(simd::max_conv_taps), d_conv);
    require(dt_rank >= 0, where, "dt_rank", "at least 0", dt_rank);
    require(dt_min > 0 && std::isfinite(dt_min), where, "dt_min", "above 0", dt_min);
    require(dt_max >= dt_min && std::isfinite(dt_max), where, "dt_max", "at least dt_min", dt_max);
  }
};

// [batch, tokens, d_model] -> the same. Errors: other shapes; `step` with another batch size than the stream's.
template <class T>
struct SelectiveSSM {
  using Scalar = T;
  using Config = SelectiveSSMConfig;

  // N = batch·tokens rows. Of the scan's states only those at the borders of its chunks are kept, and of its output
  // nothing: backward makes them again.
  struct Cache {
    Tensor<T, 3> input;      // copy of x
    Tensor<T, 2> branches;   // u before the convolution | z [N, 2E]
    Tensor<T, 2> inner;      // u [N, E]
    Tensor<T, 2> selection;  // δ | B | C [N, rank + 2S]
    Tensor<T, 2> step;       // Δ before softplus [N, E]
    Tensor<T, 2> state;      // after the last token [batch·blocks, state]
    Tensor<T, 2> borders;    // [batch·blocks, chunks·state]
  };
  // A stream: O(E·(d_state + d_conv)) a batch entry, however many tokens came at once.
  struct State {
    Index position = 0;    // tokens seen
    Tensor<T, 3> history;  // the last tokens' u before the convolution [batch, d_conv − 1, E]
    Tensor<T, 2> scan;     // the scan's state, as in Cache
  };

  Config config;
  Linear<T> in_proj, x_proj, dt_proj, out_proj;  // W_in, W_x, W_Δ (the one with a bias), W_out
  Tensor<T, 2> conv_weight;                      // [E, d_conv], the last tap on the token itself
  Tensor<T, 1> conv_bias;                        // [E]
  Tensor<T, 2> A_log;                            // [E, S]
  Tensor<T, 1> D;                                // [E]

  SelectiveSSM() = default;
  SelectiveSSM(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    const Index inner = config.inner(), rank = config.rank();
    const auto uniform = [&rng](auto& tensor, double bound) {
      for (T& value : elements(tensor)) value = static_cast<T>(rng.uniform(-bound, bound));
    };
    const auto linear = [&](Index in, Index out, bool has_bias) {
      Linear<T> map(in, out, has_bias, rng);
      uniform(map.weight, 1 / std::sqrt(static_cast<double>(in)));
      return map;
    };
    in_proj = linear(config.d_model, 2 * inner, false);
    x_proj = linear(inner, config.selection(), false);
    dt_proj = linear(rank, inner, true);
    for (T& bias : elements(dt_proj.bias)) {
      const double step = std::exp(rng.uniform(std::log(config.dt_min), std::log(config.dt_max)));
      bias = static_cast<T>(step + std::log(-std::expm1(-step)));  // softplus⁻¹
    }
    out_proj = linear(inner, config.d_model, false);
    ensure_shape(conv_weight, {inner, config.d_conv});
    ensure_shape(conv_bias, {inner});
    uniform(conv_weight, 1 / std::sqrt(static_cast<double>(config.d_conv)));
    uniform(conv_bias, 1 / std::sqrt(static_cast<double>(config.d_conv)));
    ensure_shape(A_log, {inner, config.d_state});
    for (Index e = 0; e < inner; ++e)
      for (Index s = 0; s < config.d_state; ++s) A_log(e, s) = static_cast<T>(std::log(static_cast<double>(s + 1)));
    ensure_shape(D, {inner});
    D.setConstant(T(1));
  }

  void forward(ConstTensorView<T, 3> x, Tensor<T, 3>& y, Cache& cache) const {
    require_shape("SelectiveSSM::forward", "x", x, {-1, -1, config.d_model});
    const Index batch = x.dimension(0), tokens = x.dimension(1);
    ensure_shape(cache.input, shape_of(x));
    bulk_copy(x.data(), x.size(), cache.input.data());
    ensure_shape(cache.state, {batch * blocks(), state_size()});
    cache.state.setZero();
    ensure_shape(cache.borders, {batch * blocks(), simd::scan_chunks(tokens) * state_size()});
    ensure_shape(cache.branches, {batch * tokens, 2 * config.inner()});
    for (Tensor<T, 2>* tensor : {&cache.inner, &cache.step}) ensure_shape(*tensor, {batch * tokens, config.inner()});
    ensure_shape(cache.selection, {batch * tokens, config.selection()});
    run(x, /*history=*/nullptr, {cache.branches.data(), cache.inner.data(), cache.selection.data(), cache.step.data()},
        cache.state.data(), cache.borders.data(), y);
  }

  void backward(ConstTensorView<T, 3> dy, const Cache& cache, Tensor<T, 3>& dx, SelectiveSSM& grad) const {
    require_shape("SelectiveSSM::backward", "dy", shape_of(dy), shape_of(cache.input));
    out_proj.require_trainable("SelectiveSSM::backward");
    const Index batch = dy.dimension(0), tokens = dy.dimension(1), count = batch * tokens;
    const Index inner = config.inner(), rank = config.rank(), width = config.selection();
    ensure_shape(dx, shape_of(dy));
    if (count == 0) return;
    const Scratch scratch = scratch_of(batch, tokens);
    T* gated = gated_scratch(count);
    gemm(out_proj.products, Transpose::no, Transpose::no, count, inner, config.d_model, dy.data(), config.d_model,
         out_proj.weight.data(), inner, scratch.dinner, inner);
    scan_backward(batch, tokens, cache, scratch, gated, grad);
    out_proj.backward(rows(dy), as_const(matrix(gated, count, inner)), matrix(nullptr, 0, 0), grad.out_proj);
    // W_Δ reads the first columns of the selection in place.
    gemm(Transpose::yes, Transpose::no, inner, rank, count, scratch.dstep, inner, cache.selection.data(), width,
         grad.dt_proj.weight.data(), rank, /*accumulate=*/true);
    detail::add_column_sums(as_const(matrix(scratch.dstep, count, inner)), grad.dt_proj.bias.data());
    gemm(Transpose::no, Transpose::no, count, rank, inner, scratch.dstep, inner, dt_proj.weight.data(), rank,
         scratch.dselection, width);
    x_proj.backward(as_const(matrix(scratch.dselection, count, width)), rows(cache.inner),
                    matrix(scratch.dinner, count, inner), grad.x_proj, /*accumulate_dx=*/true);
    parallel_for(blocks(), 1, [&](Index block, Index) {
      const Index channel = block * simd::scan_channels;
      for (Index b = 0; b < batch; ++b)
        simd::causal_conv_backward(conv_block(cache.branches.data(), b, tokens, channel, /*history=*/nullptr),
                                   scratch.dinner + b * tokens * inner + channel, inner,
                                   scratch.dbranches + b * tokens * 2 * inner + channel,
                                   grad.conv_weight.data() + channel * config.d_conv, grad.conv_bias.data() + channel);
    });
    in_proj.backward(as_const(matrix(scratch.dbranches, count, 2 * inner)), rows(cache.input), rows(dx), grad.in_proj);
  }

  // The next tokens [batch, new, d_model] of a stream: the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<T, 3> x, Tensor<T, 3>& y, State& state) const {
    require_shape("SelectiveSSM::step", "x", x, {-1, -1, config.d_model});
    const Index batch = x.dimension(0), tokens = x.dimension(1), kept = config.d_conv - 1;
    if (state.position == 0) {
      state.history = zeros<T, 3>({batch, kept, config.inner()});
      state.scan = zeros<T, 2>({batch * blocks(), state_size()});
    }
    require(batch == state.history.dimension(0), "SelectiveSSM::step", "batch of x", state.history.dimension(0), batch);
    const auto pass = stream_scratch(batch * tokens);
    run(x, state.history.data(), pass, state.scan.data(), /*borders=*/nullptr, y);
    for (Index b = 0; b < batch; ++b)
      for (Index row = 0; row < kept; ++row) {
        const Index from = row + tokens;  // among the kept rows and the new ones after them
        const T* source =
            from < kept ? &state.history(b, from, 0) : pass.branches + (b * tokens + from - kept) * 2 * config.inner();
        if (tokens > 0) std::copy_n(source, config.inner(), &state.history(b, row, 0));
      }
    state.position += tokens;
  }

  Tensor<T, 3> operator()(ConstTensorView<T, 3> x) const {
    Tensor<T, 3> y;
    Cache cache;
    forward(x, y, cache);
    return y;
  }

  // The large maps, for inference.
  void linears(auto&& visit) {
    for (Linear<T>* map : {&in_proj, &x_proj, &out_proj}) visit(*map);
  }
  void parameters(auto&& visit) {
    visit_layer(visit, "in_proj", in_proj);
    visit("conv_weight", conv_weight);
    visit("conv_bias", conv_bias);
    visit_layer(visit, "x_proj", x_proj);
    visit_layer(visit, "dt_proj", dt_proj);
    visit("A_log", A_log);
    visit("D", D);
    visit_layer(visit, "out_proj", out_proj);
  }

  // Which parameters weight decay shrinks: matrices, but not A_log, where it would slow every decay down.
  static bool decays(std::string_view name, std::size_t rank) { return rank >= 2 && !name.ends_with("A_log"); }

 private:
  static_assert(simd::scan_channels <= simd::conv_channels, "the convolution works on the scan's blocks");

  // What forward and backward know of the tokens, as in Cache.
  template <class Value>
  struct Activations {
    Value *branches, *inner, *selection, *step;
    operator Activations<const T>() const { return {branches, inner, selection, step}; }
  };
  // A stream has no backward: the next layer may use the same memory.
  Activations<T> stream_scratch(Index count) const {
    struct Stream;
    const Index inner = config.inner();
    T* memory = simd::thread_scratch<T, Stream>(count * (4 * inner + config.selection()));
    return {memory, memory + 2 * count * inner, memory + 4 * count * inner, memory + 3 * count * inner};
  }
  // What one pass needs and no later one: kept by the thread, so that all blocks of a model share it.
  struct Scratch {
    T *dinner, *dstep, *dbranches, *dselection;  // dinner: of y∘SiLU(z), then of u; the others as in Cache
    T* partial_selection;                        // dB | dC [blocks, N, 2S]
    T* partial_rate;                             // dA_log | dD [batch·blocks, state + channels]
  };
  Scratch scratch_of(Index batch, Index tokens) const {
    const Index count = batch * tokens, inner = config.inner();
    const Index sizes[] = {count * inner,
                           count * inner,
                           count * 2 * inner,
                           count * config.selection(),
                           blocks() * count * 2 * config.d_state,
                           batch * blocks() * (state_size() + simd::scan_channels)};
    T* memory = simd::thread_scratch<T, Scratch>(std::accumulate(std::begin(sizes), std::end(sizes), Index(0)));
    Scratch scratch;
    T** const parts[] = {
        &scratch.dinner,      &scratch.dstep, &scratch.dbranches, &scratch.dselection, &scratch.partial_selection,
        &scratch.partial_rate};
    for (std::size_t i = 0; i < std::size(sizes); ++i) *parts[i] = memory, memory += sizes[i];
    return scratch;
  }
  T* gated_scratch(Index count) const {  // y∘SiLU(z) [N, E]
    struct Gated;
    return simd::thread_scratch<T, Gated>(count * config.inner());
  }
  static MatrixView<T> matrix(T* data, Index count, Index width) { return MatrixView<T>(data, count, width); }

  Index blocks() const { return (config.inner() + simd::scan_channels - 1) / simd::scan_channels; }
  Index state_size() const { return simd::scan_state_size(config.d_state); }
  Index channels_from(Index channel) const { return std::min(simd::scan_channels, config.inner() - channel); }
  T* scan_memory() const {
    struct Scan;
    return simd::thread_scratch<T, Scan>(simd::ScanScratch<T>::size(config.d_state));
  }

  simd::ConvBlock<T> conv_block(const T* branches, Index b, Index tokens, Index channel, const T* history) const {
    const Index inner = config.inner();
    return {.tokens = tokens,
            .channels = channels_from(channel),
            .taps = config.d_conv,
            .weight = conv_weight.data() + channel * config.d_conv,
            .bias = conv_bias.data() + channel,
            .input = branches + b * tokens * 2 * inner + channel,
            .input_stride = 2 * inner,
            .history = history ? history + b * (config.d_conv - 1) * inner + channel : nullptr,
            .history_stride = inner};
  }
  simd::ScanBlock<T> scan_block(const Activations<const T>& pass, Index b, Index tokens, Index channel) const {
    const Index inner = config.inner(), row = b * tokens;
    return {.tokens = tokens,
            .channels = channels_from(channel),
            .states = config.d_state,
            .log_rate = A_log.data() + channel * config.d_state,
            .skip = D.data() + channel,
            .step = pass.step + row * inner + channel,
            .input = pass.inner + row * inner + channel,
            .gate = pass.branches + row * 2 * inner + inner + channel,
            .selection = pass.selection + row * config.selection() + config.rank(),
            .stride = inner,
            .gate_stride = 2 * inner,
            .selection_stride = config.selection()};
  }

  // body(batch entry, first channel, number of the block) for every block of channels of every sequence.
  template <class Body>
  void for_blocks(Index batch, Index tokens, Body&& body) const {
    const Index a_sequence = blocks(), together = tokens >= 64 ? 1 : 64 / std::max<Index>(1, tokens);
    parallel_for(batch * a_sequence, together, [&](Index begin, Index end) {
      for (Index block = begin; block < end; ++block)
        body(block / a_sequence, block % a_sequence * simd::scan_channels, block);
    });
  }

  // From the convolution's `history` (null: nothing before) and the scan's `state`, which moves on. borders: as in
  // Cache; null where no backward follows.
  void run(ConstTensorView<T, 3> x, const T* history, const Activations<T>& pass, T* state, T* borders,
           Tensor<T, 3>& y) const {
    const Index batch = x.dimension(0), tokens = x.dimension(1), count = batch * tokens;
    const Index inner = config.inner(), rank = config.rank(), width = config.selection();
    ensure_shape(y, shape_of(x));
    if (count == 0) return;  // nothing to point into
    in_proj.forward(rows(x), matrix(pass.branches, count, 2 * inner));
    for_blocks(batch, tokens, [&](Index b, Index channel, Index) {
      simd::causal_conv(conv_block(pass.branches, b, tokens, channel, history),
                        pass.inner + b * tokens * inner + channel, inner);
    });
    x_proj.forward(as_const(matrix(pass.inner, count, inner)), matrix(pass.selection, count, width));
    gemm(Transpose::no, Transpose::yes, count, inner, rank, pass.selection, width, dt_proj.weight.data(), rank,
         pass.step, inner, /*accumulate=*/false, dt_proj.bias.data());
    T* gated = gated_scratch(count);
    const Index kept = simd::scan_chunks(tokens) * state_size();
    for_blocks(batch, tokens, [&](Index b, Index channel, Index block) {
      simd::selective_scan(scan_block(pass, b, tokens, channel), state + block * state_size(),
                           borders ? borders + block * kept : nullptr, gated + b * tokens * inner + channel,
                           scan_memory());
    });
    out_proj.forward(as_const(matrix(gated, count, inner)), rows(y));
  }

  // From dinner as the gradient of y∘SiLU(z) to the scan's part of u's; also y∘SiLU(z), dstep, z's half of dbranches,
  // dB and dC.
  void scan_backward(Index batch, Index tokens, const Cache& cache, const Scratch& scratch, T* gated,
                     SelectiveSSM& grad) const {
    const Index inner = config.inner(), states = config.d_state, count = batch * tokens;
    const Index partial_rate = state_size() + simd::scan_channels;  // width
    const Activations<const T> pass{cache.branches.data(), cache.inner.data(), cache.selection.data(),
                                    cache.step.data()};
    for_blocks(batch, tokens, [&](Index b, Index channel, Index block) {
      const Index at = b * tokens * inner + channel, row = block % blocks() * count + b * tokens;
      T* rate = scratch.partial_rate + block * partial_rate;
      const simd::ScanGradient<T> gradient{.step = scratch.dstep + at,
                                           .input = scratch.dinner + at,
                                           .gate = scratch.dbranches + 2 * b * tokens * inner + inner + channel,
                                           .selection = scratch.partial_selection + row * 2 * states,
                                           .log_rate = rate,
                                           .skip = rate + state_size()};
      simd::selective_scan_backward(scan_block(pass, b, tokens, channel),
                                    cache.borders.data() + block * cache.borders.dimension(1), scratch.dinner + at,
                                    gated + at, gradient, scan_memory());
    });
    parallel_for(count, 64, [&](Index begin, Index end) {
      for (Index n = begin; n < end; ++n) {
        T* total = scratch.dselection + n * config.selection() + config.rank();
        std::fill_n(total, 2 * states, T(0));
        for (Index block = 0; block < blocks(); ++block) {
          const T* part = scratch.partial_selection + (block * count + n) * 2 * states;
          for (Index s = 0; s < 2 * states; ++s) total[s] += part[s];
        }
      }
    });
    for (Index block = 0; block < batch * blocks(); ++block) {
      const Index channel = block % blocks() * simd::scan_channels;
      const T* part = scratch.partial_rate + block * partial_rate;
      for (Index c = 0; c < channels_from(channel); ++c) {
        for (Index s = 0; s < states; ++s) grad.A_log(channel + c, s) += part[s * simd::scan_channels + c];
        grad.D(channel + c) += part[state_size() + c];
      }
    }
  }
};

}  // namespace rbar
