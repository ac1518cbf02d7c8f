// The routing report: shares, what a terminal is sent, and well-formed SVG.
#include "rbar/audit/routing_report.hpp"

#include "audit/toy_layers.hpp"
#include "support/catch.hpp"

#include <array>

namespace {

rbar::RoutingReport report(std::vector<std::string> pieces, std::vector<std::array<bool, 4>> layers) {
  rbar::RoutingReport result;
  result.pieces = std::move(pieces);
  for (const auto& attended : layers) result.add_layer(attended, 0.25, 0.5);
  return result;
}

// A model that "routes" every third token of layer l, starting with token l.
struct Routed : toy::Bigram<float> {
  struct Router {
    struct {
      rbar::Tensor<bool, 2> attention_mask;
    } routing;
    struct {
      double mean_coherence, mean_score;
    } stats;
  };
  struct Layer {
    struct {
      Router router;
    } routed;
  };
  struct Cache : Bigram::Cache {
    std::vector<Layer> layers;
  };
  using Bigram::Bigram;
  void forward(rbar::ConstTensorView<rbar::Token, 2> tokens, rbar::Tensor<float, 3>& logits, Cache& cache) const {
    Bigram::forward(tokens, logits, cache);
    cache.layers.resize(2);
    for (rbar::Index l = 0; l < 2; ++l) {
      auto& router = cache.layers[static_cast<std::size_t>(l)].routed.router;
      router.routing.attention_mask = rbar::zeros<bool, 2>({1, tokens.dimension(1)});
      for (rbar::Index t = l; t < tokens.dimension(1); t += 3) router.routing.attention_mask(0, t) = true;
      router.stats = {0.1 * static_cast<double>(l + 1), 0.7};
    }
  }
};

}  // namespace

TEST_CASE("a report counts layers and tokens", "[audit]") {
  const auto r = report({"a", "b", "c", "d"}, {{true, true, false, false}, {true, false, false, false}});
  CHECK(r.times_attended(0) == 2);
  CHECK(r.times_attended(1) == 1);
  CHECK(r.times_attended(3) == 0);
  CHECK(r.attention_share(r.layers[0]) == 0.5);
  CHECK(r.attention_share() == 0.375);
  CHECK(r.text(false) ==
        "tokens 0 to 3\n"
        "layer   0  ##..\n"
        "layer   1  #...\n"
        "layer  attention  mixing  mean coherence  mean score\n"
        "    0      50.0%   50.0%           0.250       0.500\n"
        "    1      25.0%   75.0%           0.250       0.500\n"
        "  all      37.5%   62.5%\n");
  rbar::RoutingReport wrong;
  CHECK_THROWS_AS(wrong.add_layer(std::array{true}, 0, 0), rbar::Error);
  CHECK_THAT(wrong.text(true), ContainsText("0.0%"));
}

TEST_CASE("coloured text shows characters whole and lets no control sequence through", "[audit]") {
  // The two bytes of é are two tokens; the third token tries to clear the screen.
  const auto r = report({"\xc3", "\xa9", "\x1b[2J", "<\n"}, {{false, true, false, true}});
  const std::string text = r.text(true);
  CHECK_THAT(text, ContainsText("\x1b[38;5;196mé\x1b[0m\x1b[38;5;244m␛[2J\x1b[0m\x1b[38;5;196m<↵\n\x1b[0m"));
  CHECK(text.find("\x1b[2J") == text.npos);
  CHECK_THAT(report({"\xff", "\xc3", "a", "\xe6\x97"}, {}).text(true), ContainsText("\uFFFD"));
}

TEST_CASE("SVG is escaped and complete", "[audit]") {
  const std::string svg = report({"<", "&", ">", "\x01"}, {{true, false, false, false}}).svg();
  CHECK_THAT(svg, Catch::Matchers::StartsWith("<svg ") && Catch::Matchers::EndsWith("</svg>\n"));
  CHECK_THAT(svg, ContainsText(">&lt;</text>") && ContainsText(">&amp;</text>") && ContainsText(">&gt;</text>"));
  const auto count = [&](std::string_view part) {
    std::size_t n = 0;
    for (std::size_t at = svg.find(part); at != svg.npos; at = svg.find(part, at + 1)) ++n;
    return n;
  };
  CHECK(count("#b2182b") == 1);
  CHECK(count("#e6e6e6") == 3);
  CHECK(count("<text") == count("</text>"));
}

TEST_CASE("routing_report reads a model's cache", "[audit]") {
  STATIC_REQUIRE(rbar::RoutedModel<Routed>);
  STATIC_REQUIRE_FALSE(rbar::RoutedModel<toy::Bigram<float>>);
  rbar::Rng rng(1);
  const Routed model({5}, rng);
  const std::vector<rbar::Token> tokens = {0, 1, 2, 3};
  const auto r = rbar::routing_report(model, tokens, {"a", "b", "c", "d"});
  CHECK(r.layers.size() == 2);
  CHECK(r.layers[0].attended == std::vector<bool>{true, false, false, true});
  CHECK(r.layers[1].attended == std::vector<bool>{false, true, false, false});
  CHECK(r.layers[1].mean_coherence == Approx(0.2));
  CHECK_THROWS_AS(rbar::routing_report(model, tokens, {"a"}), rbar::Error);
}
