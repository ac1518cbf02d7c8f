// Configs to JSON and back, and what a mistake in one is told.
#include "rbar/io/config_json.hpp"

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

#include <cstdint>
#include <limits>

namespace {

enum class Flavour { vanilla, mint };
const char* name_of(Flavour flavour) { return flavour == Flavour::vanilla ? "vanilla" : "mint"; }
bool parse(std::string_view text, Flavour& flavour) {
  if (text != "vanilla" && text != "mint") return false;
  flavour = text == "mint" ? Flavour::mint : Flavour::vanilla;
  return true;
}

struct Inner {
  double base = 10000;
  bool interleaved = true;
  template <class V>
  void fields(V&& v) {
    v("base", base);
    v("interleaved", interleaved);
  }
};
struct Outer {
  std::int64_t d_model = 64;
  std::int8_t small = 1;
  std::uint64_t seed = 0;
  float rate = 0.1f;
  bool causal = true;
  std::string note = "none";
  Flavour flavour = Flavour::vanilla;
  std::optional<Inner> rotary;
  std::vector<double> gains = {0.1, 0.01};
  template <class V>
  void fields(V&& v) {
    v("d_model", d_model);
    v("small", small);
    v("seed", seed);
    v("rate", rate);
    v("causal", causal);
    v("note", note);
    v("flavour", flavour);
    v("rotary", rotary);
    v("gains", gains);
  }
  void validate() const { rbar::require(d_model > 0, "Outer", "d_model", "at least 1", d_model); }
};

Outer read(const std::string& text) { return rbar::from_json<Outer>(rbar::parse_json(text, "test")); }

}  // namespace

TEST_CASE("a config survives JSON with every kind of member", "[io]") {
  Outer config;
  config.d_model = std::numeric_limits<std::int64_t>::max() - 5;
  config.seed = std::numeric_limits<std::uint64_t>::max();
  config.small = -128;
  config.rate = 0.3f;
  config.causal = false;
  config.note = "ünï \"x\"";
  config.flavour = Flavour::mint;
  config.rotary = Inner{500000.1, false};
  config.gains = {1.0 / 3, 5e-324};
  const test::TemporaryFolder folder;
  rbar::write_json(folder / "config.json", rbar::to_json(config));
  const auto back = rbar::from_json<Outer>(rbar::read_json(folder / "config.json"));
  CHECK(back.d_model == config.d_model);
  CHECK(back.seed == config.seed);
  CHECK(back.small == -128);
  CHECK(back.rate == 0.3f);
  CHECK_FALSE(back.causal);
  CHECK(back.note == config.note);
  CHECK(back.flavour == Flavour::mint);
  REQUIRE(back.rotary);
  CHECK(back.rotary->base == 500000.1);
  CHECK_FALSE(back.rotary->interleaved);
  CHECK(back.gains == config.gains);
}

TEST_CASE("missing keys keep their defaults", "[io]") {
  const auto config = read(R"({"d_model": 8, "rotary": {"interleaved": false}, "rate": 2})");
  CHECK(config.d_model == 8);
  CHECK(config.rate == 2);
  CHECK(config.note == "none");
  CHECK(config.rotary->base == 10000);
  CHECK_FALSE(read(R"({"rotary": null})").rotary);
}

TEST_CASE("mistakes in a config are named", "[io]") {
  const auto complains = [](const std::string& text, const std::string& message) {
    CAPTURE(text);
    CHECK_THROWS_WITH(read(text), ContainsText(message));
  };
  complains(R"({"d_modle": 8})", "a known key (the nearest is 'd_model'), got 'd_modle'");
  complains(R"({"rotary": {"bass": 8}})", "rotary: expected a known key (the nearest is 'base'), got 'bass'");
  complains(R"([])", "config: expected an object, got array");
  complains(R"({"d_model": "8"})", "d_model: expected an integer in range, got \"8\"");
  complains(R"({"d_model": 8.0})", "an integer in range, got 8.0");
  complains(R"({"d_model": 9223372036854775808})", "an integer in range");
  complains(R"({"small": 128})", "small: expected an integer in range, got 128");
  complains(R"({"seed": -1})", "seed: expected an integer in range, got -1");
  complains(R"({"d_model": null})", "got null");
  complains(R"({"causal": 1})", "causal: expected true or false, got 1");
  complains(R"({"rate": "fast"})", "rate: expected a number");
  complains(R"({"note": 1})", "note: expected a string");
  complains(R"({"flavour": "coffee"})", "flavour: expected the name of a known choice, got \"coffee\"");
  complains(R"({"flavour": 1})", "flavour");
  complains(R"({"rotary": 1})", "rotary: expected an object");
  complains(R"({"rotary": {"base": true}})", "rotary.base: expected a number");
  complains(R"({"gains": 1})", "gains: expected an array");
  complains(R"({"gains": [1, "x"]})", "gains: expected a number, got \"x\"");
  complains(R"({"d_model": 0})", "Outer: d_model: expected at least 1, got 0");
  complains(R"({"seed": 1, "seed": 2})", "expected distinct keys, got 'seed' twice");
  complains(R"({"seed": 1)", "valid JSON");
  complains("{\"note\": \"\xff\"}", "UTF-8");
  complains(std::string("{}\0x", 4), "a NUL byte");
  complains("", "valid JSON");
  complains(std::string(1'000'000, '['), "at most 100 levels");
  complains(R"({"gains": )" + std::string(1'000, '[') + std::string(1'000, ']') + "}", "at most 100 levels");

  Outer config;
  config.rate = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(rbar::to_json(config), ContainsText("rate: expected a finite number, got inf"));
  config = {};
  config.note = "\xff";
  const test::TemporaryFolder folder;
  CHECK_THROWS_WITH(rbar::write_json(folder / "a", rbar::to_json(config)), ContainsText("UTF-8"));
  CHECK(folder.count() == 0);
}
