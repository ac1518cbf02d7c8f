// The lane report: figures, what a terminal is sent, and an HTML file that holds whatever a text says.
#include "rbar/audit/lane_report_html.hpp"

#include "audit/toy_layers.hpp"
#include "support/catch.hpp"

#include <limits>
#include <random>

namespace {

using rbar::ComputeLane;
using rbar::LaneReport;

rbar::TokenTrace token(ComputeLane routed, ComputeLane lane, double in, double out, bool emitted = true) {
  constexpr rbar::Index layers[] = {2, 6, 12, 12};
  return {routed,  lane,          in, out, layers[static_cast<int>(lane)], rbar::ExitReason::max_layers_reached,
          emitted, routed != lane};
}

// Four tokens, a lane each; the last one is refused.
rbar::SequenceTrace four_lanes() {
  rbar::SequenceTrace trace;
  trace.tokens = {token(ComputeLane::reflex, ComputeLane::reflex, 0.005, 0.25),
                  token(ComputeLane::reflex, ComputeLane::standard, 0.0075, 0.5),
                  token(ComputeLane::deep, ComputeLane::deep, 0.5, 9),
                  token(ComputeLane::escalate, ComputeLane::escalate, 20, 12, false)};
  trace.residuals = {0, 0, 0, 0, 1, 0, 0, 0, 1, 4, 0, 0, 1, 1, 1, 0};
  trace.top_residuals = {{2, 1, 4}};
  trace.spectra = {{0.5, 0.25, 0, rbar::DriftLevel::none}, {1, 0.5, 0.75, rbar::DriftLevel::strong}};
  return trace;
}

std::size_t count(std::string_view text, std::string_view part) {
  std::size_t n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// Tags are closed in order, no attribute breaks out of its quotes, ids are there once and every link has its target;
// all of it is UTF-8 without control characters. Returns what is wrong, or nothing.
std::string defect(const std::string& html) {
  for (std::size_t i = 0; i < html.size();) {
    const rbar::CodePoint point = rbar::decode_utf8(html, i);
    if (point.value == rbar::CodePoint::invalid) return "no UTF-8";
    if ((point.value < 0x20 && point.value != '\n') || (point.value >= 0x7f && point.value < 0xa0)) return "control";
    if (rbar::detail::changes_direction(point.value)) return "direction";
    i += point.length;
  }
  std::vector<std::string> open;
  for (std::size_t at = html.find('<'); at != html.npos; at = html.find('<', at)) {
    std::size_t end = at;
    for (bool quoted = false; quoted || html[end] != '>'; ++end) {
      if (end + 1 >= html.size()) return "a tag does not end";
      if (html[end] == '"') quoted = !quoted;
      if (end > at && html[end] == '<') return "a tag in a tag";
    }
    const std::string tag = html.substr(at + 1, end - at - 1), name = tag.substr(0, tag.find(' '));
    at = end;
    if (name.front() == '!' || name == "meta" || tag.back() == '/') continue;
    for (const char* forbidden : {"script", "img", "link", "iframe", "object", "form", "b"})
      if (name == forbidden) return "<" + name + ">";
    if (name.front() != '/')
      open.push_back(name);
    else if (open.empty() || "/" + open.back() != name)
      return "<" + name + "> closes nothing";
    else
      open.pop_back();
    const std::size_t link = tag.find("href=\"#");
    if (link != tag.npos && count(html, "id=\"" + tag.substr(link + 7)) != 1) return tag + " leads nowhere";
    if (tag.find("href") != tag.npos && link == tag.npos) return tag + " leads outside";
  }
  return open.empty() ? std::string() : "<" + open.back() + "> stays open";
}

}  // namespace

TEST_CASE("a lane report counts", "[audit]") {
  const LaneReport report({"a", "b", "c", "d"}, four_lanes());
  CHECK(report.summary().tokens == 4);
  CHECK(report.summary().layers_used == 8);
  CHECK(report.summary().moved == 1);
  CHECK(report.summary().refused == 1);
  CHECK(report.summary(ComputeLane::standard).share == 0.25);
  CHECK(report.summary(ComputeLane::standard).moved == 1);
  CHECK(report.summary(ComputeLane::reflex).energy_out == 0.25);
  CHECK(report.count(rbar::ExitReason::max_layers_reached) == 4);
  CHECK(report.hardest(3) == std::vector<rbar::Index>{3, 2, 1});
  CHECK(report.hardest(9).size() == 4);
  CHECK(report.text(false) ==
        "tokens 0 to 3\n  rsdX\n"
        "lane      tokens   share  layers  energy in  energy out  moved  refused\n"
        "reflex         1   25.0%    2.00      0.005        0.25      0        0\n"
        "standard       1   25.0%    6.00     0.0075         0.5      1        0\n"
        "deep           1   25.0%   12.00        0.5           9      0        0\n"
        "escalate       1   25.0%   12.00         20          12      0        1\n"
        "all            4  100.0%    8.00      5.128       5.438      1        1\n"
        "thresholds  reflex 0.01, standard 0.1, deep 1, max 10; pressure 0.00\n"
        "exits       max_layers_reached 4\n"
        "hardest tokens\n"
        "token  routed    ended     energy in  energy out  layers  exit\n"
        "    3  escalate  refused          20          12      12  max_layers_reached  'd'\n"
        "    2  deep      deep            0.5           9      12  max_layers_reached  'c'\n"
        "    1  reflex    standard     0.0075         0.5       6  max_layers_reached  'b'\n"
        "    0  reflex    reflex        0.005        0.25       2  max_layers_reached  'a'\n"
        "largest residuals\n"
        "query    key      energy\n"
        "    2      1           4  'c' against 'b'\n"
        "measured    lambda_2         gap       drift  from the embeddings up\n"
        "       1         0.5        0.25           0  none\n"
        "       2           1         0.5        0.75  strong\n");
}

TEST_CASE("a lane report refuses traces that are none", "[audit]") {
  const std::vector<std::string> pieces = {"a", "b", "c", "d"};
  const auto refuses = [&](auto&& spoil) {
    rbar::SequenceTrace trace = four_lanes();
    spoil(trace);
    CHECK_THROWS_AS(LaneReport(pieces, trace), rbar::Error);
  };
  refuses([](auto& trace) { trace.tokens.pop_back(); });
  refuses([](auto& trace) { trace.residuals.pop_back(); });
  refuses([](auto& trace) { trace.residuals[5] = -1; });
  refuses([](auto& trace) { trace.tokens[1].energy_in = std::numeric_limits<double>::quiet_NaN(); });
  refuses([](auto& trace) { trace.tokens[1].energy_out = std::numeric_limits<double>::infinity(); });
  refuses([](auto& trace) { trace.tokens[1].layers_used = -1; });
  refuses([](auto& trace) { trace.top_residuals[0].query = 4; });
  refuses([](auto& trace) { trace.top_residuals[0].key = 3; });
  refuses([](auto& trace) { trace.thresholds.deep = std::numeric_limits<double>::quiet_NaN(); });
}

TEST_CASE("coloured lanes show characters whole and let no control sequence through", "[audit]") {
  // The two bytes of é are two tokens, shown in the deeper lane; the third token tries to clear the screen.
  const std::string text = LaneReport({"\xc3", "\xa9", "\x1b[2J\n", "\u202e"}, four_lanes()).text(true);
  CHECK_THAT(text, ContainsText("\x1b[38;5;78mé\x1b[0m\x1b[38;5;214m␛[2J↵\n\x1b[0m\x1b[38;5;205m\x1b[7m<U+202E>"));
  CHECK(text.find("\x1b[2J") == text.npos);
  CHECK(text.find("\u202e") == text.npos);
}

TEST_CASE("the HTML is one whole file that needs and runs nothing", "[audit]") {
  rbar::SequenceTrace trace = four_lanes();
  trace.thresholds.max = std::numeric_limits<double>::infinity();
  const std::string html = lane_report_html(LaneReport({"<b>", "&", "\"'", "</span>"}, trace), "</title><script>");
  CHECK(defect(html).empty());
  CHECK_THAT(html, Catch::Matchers::StartsWith("<!doctype html>") && ContainsText("default-src 'none'"));
  CHECK_THAT(html, ContainsText(">&lt;b&gt;</span>") && ContainsText(">&quot;&#39;</span>"));
  CHECK_THAT(html, ContainsText("<title>&lt;/title&gt;&lt;script&gt;</title>"));
  CHECK_THAT(html, ContainsText("1 &#39;&amp;&#39;: reflex, escalated to standard · energy in 0.0075, out 0.5"));
  CHECK(count(html, "REFUSED") == 1);
  CHECK(count(html, "class=\"ring\"") == 1);
  CHECK(count(html, "data-info=") == 4);
  for (const char* outside : {"http:", "https:", "src=", "url(", "@import", "<script"})
    CHECK(html.find(outside) == html.npos);
  CHECK(defect(lane_report_html(LaneReport({}, {}))).empty());
  CHECK(defect(html + "<p>") == "<p> stays open");
}

TEST_CASE("a threshold above everything is none", "[audit]") {
  rbar::SequenceTrace trace = four_lanes();
  trace.thresholds.deep = static_cast<double>(1e30f);  // as a tuner in float has it: 1.0000000150474662e30
  trace.thresholds.max = 1e30;
  const LaneReport report({"a", "b", "c", "d"}, trace);
  CHECK(report.text(false).find("deep none, max none") != std::string::npos);
  const std::string page = rbar::lane_report_html(report);
  CHECK(page.find("e+30") == std::string::npos);
  CHECK(page.find("θ standard") != std::string::npos);
  CHECK(page.find("θ deep") == page.rfind("θ deep"));  // in no chart
}

TEST_CASE("no text breaks the HTML", "[audit]") {
  constexpr std::string_view alphabet[] = {
      "<",      ">",        "\"",       "'",    "&", "<script>", "</style>", "-->", "\n", "\x1b", "\x7f", "\xc2\x9b",
      "\u202e", "\xf0\x9f", "\x98\x80", "\xc3", "a", "",         "\xff",     "é",   "%s", "]]>",  "日",   "\ufffe"};
  std::mt19937 random(7);
  for (int trial = 0; trial < 300; ++trial) {
    INFO("trial " << trial);
    const std::size_t tokens = random() % 150;  // more than the residual map has cells, at times
    std::vector<std::string> pieces(tokens);
    rbar::SequenceTrace trace;
    for (std::string& piece : pieces) {
      for (std::size_t n = random() % 4; n > 0; --n) piece += alphabet[random() % std::size(alphabet)];
      const auto lane = static_cast<ComputeLane>(random() % 4);
      const double energy = random() % 3 == 0 ? 0 : std::exp(static_cast<double>(random() % 100) - 50);
      trace.tokens.push_back(token(lane, lane, energy, energy / 2, random() % 9 > 0));
    }
    if (tokens > 0) {
      for (std::size_t i = 0; i < tokens * tokens; ++i) trace.residuals.push_back(static_cast<double>(random() % 5));
      const auto query = static_cast<rbar::Index>(random() % tokens);
      trace.top_residuals.push_back({query, query / 2, 4});
    }
    const LaneReport report(pieces, trace);
    const std::string html = lane_report_html(report, pieces.empty() ? "" : pieces[0]);
    REQUIRE(defect(html) == "");
    REQUIRE(html.find("nan") == html.npos);
    std::size_t shown = 0;
    for (const auto& group : report.groups) shown += group.count;
    REQUIRE(shown == tokens);
  }
}

namespace {

// A model whose lanes are its tokens.
struct Traced : toy::Bigram<float> {
  using Bigram::Bigram;
  rbar::SequenceTrace trace(std::span<const rbar::Token> tokens) const {
    rbar::SequenceTrace result;
    for (const rbar::Token id : tokens)
      result.tokens.push_back(token(static_cast<ComputeLane>(id), static_cast<ComputeLane>(id), 1, 1));
    return result;
  }
};

}  // namespace

TEST_CASE("lane_report asks the model for its trace", "[audit]") {
  STATIC_REQUIRE(rbar::TracedModel<Traced>);
  STATIC_REQUIRE_FALSE(rbar::TracedModel<toy::Bigram<float>>);
  rbar::Rng rng(1);
  const Traced model({5}, rng);
  const std::vector<rbar::Token> tokens = {3, 0};
  const LaneReport report = rbar::lane_report(model, tokens, {"x", "y"});
  CHECK(report.token(0).lane == ComputeLane::escalate);
  CHECK(report.label(1) == "'y'");
  CHECK_THROWS_AS(rbar::lane_report(model, tokens, {"x"}), rbar::Error);
}
