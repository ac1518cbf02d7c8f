#include "rbar/routing/early_exit.hpp"

#include "support/catch.hpp"

#include <limits>
#include <vector>

using namespace rbar;

namespace {

EarlyExitConfig enabled(double epsilon, Eigen::Index patience, Eigen::Index min_layers, bool track_history = true) {
  EarlyExitConfig config;
  config.enabled = true;
  config.epsilon = epsilon;
  config.patience = patience;
  config.min_layers = min_layers;
  config.track_history = track_history;
  return config;
}

struct Exit {
  Eigen::Index layer = -1;  // -1: none
  ExitReason reason = ExitReason::max_layers_reached;

  bool operator==(const Exit&) const = default;
};

Exit run(const EarlyExitConfig& config, const std::vector<double>& energies, double spread = 1) {
  EarlyExitState state;
  for (std::size_t layer = 0; layer < energies.size(); ++layer)
    if (const auto reason = observe(config, state, static_cast<Eigen::Index>(layer), energies[layer], spread))
      return {static_cast<Eigen::Index>(layer), *reason};
  return {};
}

constexpr auto converged = ExitReason::energy_converged;

}  // namespace

TEST_CASE("a token leaves where its energy stops changing") {
  CHECK(run(enabled(0.1, 1, 1), {1, 0.5, 0.49}) == Exit{2, converged});
  CHECK(run(enabled(0.1, 2, 0), {1, 1, 1}) == Exit{2, converged});
  CHECK(run(enabled(0.1, 2, 1), {1, 1, 1}) == Exit{2, converged});
  // Layers count from min_layers: one more of them, one layer later.
  CHECK(run(enabled(0.1, 2, 2), {1, 1, 1}) == Exit{});
  CHECK(run(enabled(0.1, 2, 2), {1, 1, 1, 1}) == Exit{3, converged});
  const Exit fourth = run(enabled(0.1, 1, 1), {1, 0.5, 0.25, 0.24});
  CHECK(fourth == Exit{3, converged});
  CHECK(fourth.layer + 1 == 4);  // layers used
  CHECK(run(enabled(0.1, 1, 1), {1, 2, 4, 8, 16}) == Exit{});
}

TEST_CASE("a relative change of exactly ε does not count, and patience wants layers in a row") {
  CHECK(run(enabled(0.5, 1, 1), {1, 0.5, 0.25}) == Exit{});
  CHECK(run(enabled(0.1, 2, 1), {1, 1, 2, 2, 4, 4, 4}) == Exit{6, converged});
  CHECK(run(enabled(0, 1, 1), {1, 0.999, 0.999}) == Exit{2, converged});  // ε = 0: no change at all
}

TEST_CASE("constant energy converges whether or not the history is kept") {
  for (const bool track : {true, false}) {
    CHECK(run(enabled(0.1, 1, 1, track), {3, 3, 3}) == Exit{1, converged});
    CHECK(run(enabled(0.1, 3, 1, track), {3, 3, 3, 3}) == Exit{3, converged});
  }
  EarlyExitState state;
  for (Eigen::Index layer = 0; layer < 20; ++layer)
    observe(EarlyExitConfig{}, state, layer, static_cast<double>(layer));
  CHECK(state.layers == 20);
  CHECK(state.history[3] == 19);
  CHECK(state.history[4] == 4);
}

TEST_CASE("no energy left is agreement or collapse, by the spread of the states") {
  CHECK(run(enabled(0.1, 1, 1), {1, 0}, 0.7) == Exit{1, ExitReason::perfect_coherence});
  CHECK(run(enabled(0.1, 1, 1), {1, 0}, 0) == Exit{1, ExitReason::collapsed});
  CHECK(run(enabled(0.1, 1, 1), {0, 0}) == Exit{1, ExitReason::perfect_coherence});
  CHECK(run(enabled(0.1, 1, 0), {0}) == Exit{0, ExitReason::perfect_coherence});
  CHECK(run(enabled(0.1, 5, 3), {0, 0, 0, 0}, 0) == Exit{3, ExitReason::collapsed});
  // Collapse is an energy of 0 too: states that are all the same with energy left go on.
  CHECK(run(enabled(0.1, 1, 1), {1, 0.5}, 0) == Exit{});
  // After 0 any energy is a change.
  CHECK(run(enabled(0.9, 1, 1), {0, 1, 1e9}) == Exit{});
}

TEST_CASE("a config that is not enabled keeps every token") {
  EarlyExitConfig config = enabled(0.1, 1, 0);
  config.enabled = false;
  CHECK(run(config, {1, 1, 0, 0}) == Exit{});
}

TEST_CASE("early exit refuses what is no energy") {
  for (const bool on : {true, false}) {
    EarlyExitConfig config;
    config.enabled = on;
    EarlyExitState state;
    CHECK_THROWS_WITH(observe(config, state, 0, std::numeric_limits<double>::quiet_NaN()), ContainsText("finite"));
    CHECK_THROWS_WITH(observe(config, state, 0, std::numeric_limits<double>::infinity()), ContainsText("finite"));
    CHECK_THROWS_WITH(observe(config, state, 0, -1e-9), ContainsText("at least 0"));
    CHECK_THROWS_WITH(observe(config, state, 1, 1.0), ContainsText("layer"));
    CHECK(state.layers == 0);
  }
  for (const auto& bad : {enabled(-0.1, 1, 1), enabled(1, 1, 1), enabled(0.1, 0, 1), enabled(0.1, 1, -1),
                          enabled(std::numeric_limits<double>::quiet_NaN(), 1, 1)})
    CHECK_THROWS_AS(bad.validate(), Error);
  CHECK_NOTHROW(EarlyExitConfig{}.validate());
}
