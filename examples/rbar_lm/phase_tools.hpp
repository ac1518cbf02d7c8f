// What rbar_lm can do with phase-modulated models alone: log their phases over training, and intervene on them.
#pragma once

#include "model_of.hpp"

#include "rbar/audit/phase_log.hpp"
#include "rbar/model/pma_interventions.hpp"
#include "rbar/model/pma_lm.hpp"

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace rbar_lm {

template <class T>
struct FamilyTools<rbar::PhaseModulatedAttentionLM<T>> {
  using Model = rbar::PhaseModulatedAttentionLM<T>;

  static rbar::PhaseLog phase_log(const std::filesystem::path& path, rbar::TokenSpan text, Index window, Index every) {
    return {path, text, every, {.window = window, .max_windows = 16}};
  }

  static std::vector<InterventionRow> intervene(Model& model, rbar::TokenSpan text, const InterventionSweep& sweep) {
    const rbar::PhaseMetricsOptions options{.window = sweep.window, .max_windows = sweep.max_windows};
    const auto member = member_named(sweep.on);
    std::vector<InterventionRow> rows;
    const auto measure = [&](std::optional<double> value) {
      const rbar::PhaseMetrics metrics = rbar::phase_metrics(std::as_const(model), text, options);
      InterventionRow row{.value = value, .nats = metrics.nats, .next_token_entropy = metrics.next_token_entropy};
      const bool all = sweep.layer == rbar::all_layers;
      const double share = all ? 1 / static_cast<double>(metrics.layers.size()) : 1;
      for (std::size_t l = 0; l < metrics.layers.size(); ++l) {
        if (!all && static_cast<Index>(l) != sweep.layer) continue;
        const auto& layer = metrics.layers[l];
        row.attention_entropy += share * layer.attention_entropy;
        row.R_mean += share * layer.R_mean;
        row.coupling += share * layer.coupling;
        row.temperature += share * layer.temperature;
        row.gate += share * layer.gate;
      }
      rows.push_back(row);
    };
    measure({});
    for (const double value : sweep.values) {
      rbar::PhaseIntervention intervention;
      intervention.*member = value;
      const rbar::ScopedIntervention scope(model, intervention, sweep.layer);
      measure(value);
    }
    return rows;
  }

 private:
  static std::optional<double> rbar::PhaseIntervention::*member_named(const std::string& name) {
    using Intervention = rbar::PhaseIntervention;
    const std::pair<const char*, std::optional<double> Intervention::*> members[] = {
        {"coupling", &Intervention::coupling},
        {"order_parameter", &Intervention::order_parameter},
        {"temperature", &Intervention::temperature},
        {"gate", &Intervention::gate},
        {"phase", &Intervention::phase}};
    for (const auto& [known, member] : members)
      if (name == known) return member;
    throw rbar::Error("arguments", "--on", "coupling, order_parameter, temperature, gate or phase", "'" + name + "'");
  }
};

}  // namespace rbar_lm
