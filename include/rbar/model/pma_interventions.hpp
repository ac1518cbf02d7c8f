// Interventions on a phase-modulated model: what the phases do is set to a value while a scope lives, everything else
// stays as learned.
//   const ScopedIntervention weak = set_coupling_override(model, 0.1);              // every layer
//   const ScopedIntervention none = set_gate_override(model, 0.0, /*layer=*/2);     // on top of it
// Scopes nest, in one layer or many; a younger one overrides only what it names. Each takes itself back when it ends,
// by an exception too and in whatever order scopes end.
#pragma once

#include "rbar/core/error.hpp"
#include "rbar/core/tensor.hpp"
#include "rbar/kuramoto/interventions.hpp"

#include <algorithm>
#include <list>
#include <memory>
#include <utility>
#include <vector>

namespace rbar {

inline constexpr Index all_layers = -1;

// Which interventions are in force on a model; a member of it. They belong to the object, not to its value: a copy has
// none, assignment changes none. A move carries them along, into a new model or an old one (so that two swap theirs
// with everything else); one that carries none changes none. No scope may begin or end while a pass is running.
class PhaseInterventions {
 public:
  PhaseInterventions() = default;
  PhaseInterventions(const PhaseInterventions&) noexcept {}
  PhaseInterventions(PhaseInterventions&&) noexcept = default;
  // NOLINTNEXTLINE(bugprone-unhandled-self-assignment): nothing is assigned
  PhaseInterventions& operator=(const PhaseInterventions&) noexcept { return *this; }
  PhaseInterventions& operator=(PhaseInterventions&& other) noexcept {
    if (other.active_ && !other.active_->scopes.empty()) active_ = std::move(other.active_);
    return *this;
  }
  ~PhaseInterventions() = default;

  // What a layer is under, for the pass to come; null without any scope, and for a layer that the model, assigned
  // another value, has had only since the youngest began.
  const PhaseIntervention* on(std::size_t layer) const {
    return active_ && !active_->scopes.empty() && layer < active_->merged.size() ? &active_->merged[layer] : nullptr;
  }

 private:
  friend class ScopedIntervention;
  struct Scope {
    PhaseIntervention intervention;
    Index layer;
  };
  struct Active {
    std::list<Scope> scopes;                // the oldest first
    std::vector<PhaseIntervention> merged;  // [layers]

    void merge() noexcept {
      std::fill(merged.begin(), merged.end(), PhaseIntervention{});
      for (const Scope& scope : scopes)
        for (std::size_t l = 0; l < merged.size(); ++l)
          if (scope.layer == all_layers || scope.layer == static_cast<Index>(l)) add(scope.intervention, merged[l]);
    }
    static void add(const PhaseIntervention& younger, PhaseIntervention& sum) noexcept {
      for (const auto member : {&PhaseIntervention::coupling, &PhaseIntervention::order_parameter,
                                &PhaseIntervention::temperature, &PhaseIntervention::gate, &PhaseIntervention::phase})
        if (younger.*member) sum.*member = younger.*member;
    }
  };

  std::shared_ptr<Active> active_;  // shared with the scopes, so that either side may end first
};

// Errors: values that mean nothing (PhaseIntervention::validate), a layer that the model does not have.
class [[nodiscard]] ScopedIntervention {
 public:
  template <class Model>
  ScopedIntervention(Model& model, const PhaseIntervention& intervention, Index layer = all_layers)
      : ScopedIntervention(model.interventions, model.config.pma_blocks, intervention, layer) {}
  ScopedIntervention(PhaseInterventions& interventions, Index layers, const PhaseIntervention& intervention,
                     Index layer = all_layers) {
    constexpr const char* where = "ScopedIntervention";
    intervention.validate();
    require(layers >= 1, where, "model", "at least one phase-modulated layer", layers);
    require(layer == all_layers || (layer >= 0 && layer < layers), where, "layer",
            "a phase-modulated layer, counted from 0, or all_layers", layer);
    if (!interventions.active_) interventions.active_ = std::make_shared<PhaseInterventions::Active>();
    interventions.active_->merged.resize(static_cast<std::size_t>(layers));
    active_ = interventions.active_;
    scope_ = active_->scopes.insert(active_->scopes.end(), {intervention, layer});
    active_->merge();
  }
  ScopedIntervention(ScopedIntervention&& other) noexcept : active_(std::move(other.active_)), scope_(other.scope_) {}
  ScopedIntervention& operator=(ScopedIntervention&&) = delete;
  ~ScopedIntervention() {
    if (!active_) return;
    active_->scopes.erase(scope_);
    active_->merge();
  }

 private:
  std::shared_ptr<PhaseInterventions::Active> active_;
  std::list<PhaseInterventions::Scope>::iterator scope_;
};

// K of every token.
template <class Model>
ScopedIntervention set_coupling_override(Model& model, double coupling, Index layer = all_layers) {
  return {model, {.coupling = coupling}, layer};
}
// R in the temperature; the phases stay as they are.
template <class Model>
ScopedIntervention set_order_parameter_override(Model& model, double order_parameter, Index layer = all_layers) {
  return {model, {.order_parameter = order_parameter}, layer};
}
// τ of every token and head.
template <class Model>
ScopedIntervention set_temperature_override(Model& model, double temperature, Index layer = all_layers) {
  return {model, {.temperature = temperature}, layer};
}
// λ: 0 takes the phases out of the scores (not out of τ).
template <class Model>
ScopedIntervention set_gate_override(Model& model, double gate, Index layer = all_layers) {
  return {model, {.gate = gate}, layer};
}
// φ of every token and head, radians.
template <class Model>
ScopedIntervention set_phase_override(Model& model, double phase, Index layer = all_layers) {
  return {model, {.phase = phase}, layer};
}

}  // namespace rbar
