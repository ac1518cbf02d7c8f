// The phase-modulated attention language model: a state space reads the text, attention whose heads are oscillators
// coupled by what the state space found looks back at it,
//   h₀ = dropout(E[token]);   N blocks of selective state space;   h_SSM = h_N
//   M blocks of phase-modulated attention, each with its coupling K from h_SSM;   logits = E · RMSNorm(h_{N+M})
// (pma_block.hpp). Reconstruction from published equations; no source of the original could be had. N = 0 is attention
// alone, with h_SSM = h₀; M = 0 the state space alone.
#pragma once

#include "rbar/core/bulk.hpp"
#include "rbar/kuramoto/phase_modulated_attention.hpp"
#include "rbar/model/model_ends.hpp"
#include "rbar/model/pma_block.hpp"
#include "rbar/model/pma_config.hpp"
#include "rbar/model/pma_interventions.hpp"
#include "rbar/nn/ssm.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rbar {

// tokens [batch, tokens] -> logits [batch, tokens, vocab_size]. Errors: a token outside the vocabulary, more than
// max_seq_len tokens, gradients of another shape than the last forward pass.
template <class T>
struct PhaseModulatedAttentionLM {
  using Scalar = T;
  using Config = PMAConfig;
  using Ends = ModelEnds<T, RMSNorm<T>>;
  using SSMBlock = MixerBlock<T, SelectiveSSM<T>>;
  using PMABlock = MixerBlock<T, PhaseModulatedAttention<T>>;
  static constexpr const char* model_type = "pma";  // in config.json

  struct Cache {
    DropoutState dropout;
    bool recompute = false;  // keep less, and compute it again in backward (layer_caches.hpp); set by the caller
    Tensor<Token, 2> tokens;
    std::vector<Tensor<T, 3>> hidden;  // h₀ … h_{N+M}
    LayerCaches<typename SSMBlock::Cache> ssm;
    LayerCaches<typename PMABlock::Cache> pma;
    typename Ends::Cache ends;
    // Scratch: the first two are forward's and backward's, the others backward's.
    mutable typename SSMBlock::Scratch ssm_scratch;
    mutable typename PMABlock::Scratch pma_scratch;
    mutable Tensor<T, 3> dhidden, dssm_state, dssm_part;
  };
  struct State {
    Index position = 0;  // tokens seen
    Tensor<T, 3> hidden, ssm_state;
    std::vector<typename SelectiveSSM<T>::State> ssm;
    std::vector<typename PhaseModulatedAttention<T>::State> pma;
    typename Ends::Cache ends;
    typename SSMBlock::Scratch ssm_scratch;
    typename PMABlock::Scratch pma_scratch;
  };

  Config config;
  Ends ends;
  std::vector<SSMBlock> ssm;
  std::vector<PMABlock> pma;
  PhaseInterventions interventions;  // pma_interventions.hpp

  PhaseModulatedAttentionLM() = default;
  PhaseModulatedAttentionLM(const Config& config_, Rng& rng) : config(config_) {
    config.validate();
    ends = Ends(config.vocab_size, config.d_model, /*positions=*/0, config.tie_embeddings, config.init,
                RMSNorm<T>(config.d_model, config.norm_eps), rng);
    for (Index l = 0; l < config.ssm_blocks; ++l)
      ssm.emplace_back(SelectiveSSM<T>(config.ssm(), rng), config.d_model, config.ssm_mlp ? config.hidden() : 0,
                       config.norm_eps, config.dropout, rng);
    for (Index l = 0; l < config.pma_blocks; ++l)
      pma.emplace_back(PhaseModulatedAttention<T>(config.attention(), rng), config.d_model, config.hidden(),
                       config.norm_eps, config.dropout, rng);
  }

  void forward(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, Cache& cache) const {
    require_length("PhaseModulatedAttentionLM::forward", tokens.dimension(1));
    ensure_shape(cache.tokens, shape_of(tokens));
    std::copy_n(tokens.data(), tokens.size(), cache.tokens.data());
    cache.ssm.prepare(ssm.size(), cache.recompute);
    cache.pma.prepare(pma.size(), cache.recompute);
    cache.hidden.resize(ssm.size() + pma.size() + 1);
    auto& hidden = cache.hidden;
    ends.embed(tokens, /*first_position=*/0, hidden[0]);
    dropout<T>(config.dropout, cache.dropout, 0, rows(hidden[0]));
    for (std::size_t l = 0; l < ssm.size(); ++l)
      ssm[l].forward(view(std::as_const(hidden[l])), cache.dropout, stream_of(l), hidden[l + 1], cache.ssm.fill(l),
                     cache.ssm_scratch);
    const auto ssm_state = view(std::as_const(hidden[ssm.size()]));
    for (std::size_t l = 0; l < pma.size(); ++l) {
      const std::size_t depth = ssm.size() + l;
      auto& block_cache = cache.pma.fill(l);
      block_cache.mixer.intervention = interventions.on(l);
      pma[l].forward(view(std::as_const(hidden[depth])), cache.dropout, stream_of(depth), hidden[depth + 1],
                     block_cache, cache.pma_scratch, ssm_state);
    }
    ends.head(view(std::as_const(hidden.back())), logits, cache.ends);
  }

  void backward(ConstTensorView<T, 3> dlogits, const Cache& cache, PhaseModulatedAttentionLM& grad) const {
    constexpr const char* where = "PhaseModulatedAttentionLM::backward";
    const auto& hidden = cache.hidden;
    require(hidden.size() == ssm.size() + pma.size() + 1, where, "blocks in the cache", ssm.size() + pma.size(),
            hidden.size());
    ends.head_backward(dlogits, view(hidden.back()), cache.ends, cache.dhidden, grad.ends);
    for (std::size_t l = pma.size(); l-- > 0;) {
      const std::size_t depth = ssm.size() + l;
      const bool last = l + 1 == pma.size();
      const auto& filled = cache.pma.filled(l, 0, [&](auto& again) {
        again.mixer.intervention = interventions.on(l);
        pma[l].fill(view(hidden[depth]), cache.dropout, stream_of(depth), again, cache.pma_scratch,
                    view(hidden[ssm.size()]));
      });
      pma[l].backward(view(hidden[depth]), cache.dropout, stream_of(depth), filled, cache.dhidden, cache.pma_scratch,
                      grad.pma[l], last ? cache.dssm_state : cache.dssm_part);
      if (!last) add(cache.dssm_part, cache.dssm_state);
    }
    if (!pma.empty()) add(cache.dssm_state, cache.dhidden);
    for (std::size_t l = ssm.size(); l-- > 0;) {
      const auto& filled = cache.ssm.filled(l, 0, [&](auto& again) {
        ssm[l].fill(view(hidden[l]), cache.dropout, stream_of(l), again, cache.ssm_scratch);
      });
      ssm[l].backward(view(hidden[l]), cache.dropout, stream_of(l), filled, cache.dhidden, cache.ssm_scratch,
                      grad.ssm[l]);
    }
    dropout<T>(config.dropout, cache.dropout, 0, rows(cache.dhidden));
    ends.embed_backward(view(std::as_const(cache.dhidden)), view(cache.tokens), grad.ends);
  }

  // The logits of the next tokens [batch, new], with the numbers of `forward` on all tokens so far.
  void step(ConstTensorView<Token, 2> tokens, Tensor<T, 3>& logits, State& state,
            StepLogits wanted = StepLogits::all) const {
    require_length("PhaseModulatedAttentionLM::step", state.position + tokens.dimension(1));
    state.ssm.resize(ssm.size());
    state.pma.resize(pma.size());
    ends.embed(tokens, state.position, state.hidden);
    for (std::size_t l = 0; l < ssm.size(); ++l) ssm[l].step(state.hidden, state.ssm[l], state.ssm_scratch);
    ensure_shape(state.ssm_state, shape_of(state.hidden));
    bulk_copy(state.hidden.data(), state.hidden.size(), state.ssm_state.data());
    for (std::size_t l = 0; l < pma.size(); ++l) {
      state.pma[l].intervention = interventions.on(l);
      pma[l].step(state.hidden, state.pma[l], state.pma_scratch, view(std::as_const(state.ssm_state)));
    }
    ends.head(wanted, state.hidden, logits, state.ends);
    state.position += tokens.dimension(1);
  }

  Tensor<T, 3> operator()(ConstTensorView<Token, 2> tokens) const {
    Tensor<T, 3> logits;
    Cache cache;
    forward(tokens, logits, cache);
    return logits;
  }

  Index num_parameters() const { return count_parameters(*this); }

  void parameters(auto&& visit) {
    ends.parameters(visit);
    for (std::size_t l = 0; l < ssm.size(); ++l) visit_layer(visit, "ssm." + std::to_string(l), ssm[l]);
    for (std::size_t l = 0; l < pma.size(); ++l) visit_layer(visit, "pma." + std::to_string(l), pma[l]);
  }

  // What inference may freeze: every large matrix.
  void linears(auto&& visit) {
    ends.linears(visit);
    for (auto& block : ssm) block.linears(visit);
    for (auto& block : pma) block.linears(visit);
  }

  // Weight decay shrinks matrices, which phases, frequencies, λ, α, β and D are not; nor A_log, as the state space
  // says.
  static bool decays(std::string_view name, std::size_t rank) { return SelectiveSSM<T>::decays(name, rank); }

 private:
  // Stream 0 of dropout is the embedding's, each block has two.
  static std::uint64_t stream_of(std::size_t block) { return 1 + 2 * static_cast<std::uint64_t>(block); }

  static void add(const Tensor<T, 3>& from, Tensor<T, 3>& to) {
    add_with_dropout<T>(0, {}, 0, rows(std::as_const(to)), rows(from), rows(to));
  }

  void require_length(std::string_view operation, Index length) const {
    if (length > config.max_seq_len) [[unlikely]]
      throw Error(operation, "tokens of a sequence", "at most max_seq_len " + std::to_string(config.max_seq_len),
                  std::to_string(length));
  }
};

}  // namespace rbar
