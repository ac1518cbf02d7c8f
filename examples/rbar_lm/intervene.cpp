// What a trained phase-modulated model does when its phases are set to a value.
#include "any_model.hpp"
#include "arguments.hpp"

#include "rbar/audit/line_chart.hpp"
#include "rbar/io/file.hpp"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>

namespace rbar_lm {
namespace {

using rbar::detail::format_line;

// What the model itself has where `on` is set; NaN where that is no single number.
double own_value(const InterventionRow& row, const std::string& on) {
  return on == "coupling"          ? row.coupling
         : on == "order_parameter" ? row.R_mean
         : on == "temperature"     ? row.temperature
         : on == "gate"            ? row.gate
                                   : std::nan("");
}

std::string csv_of(const std::vector<InterventionRow>& rows, const Arguments& a) {
  std::string csv =
      "on,layer,value,nats,perplexity,next_token_entropy,attention_entropy,R_mean,coupling,temperature,gate\n";
  for (const InterventionRow& row : rows) {
    csv += row.value
               ? a.on + "," + (a.layer < 0 ? "all" : std::to_string(a.layer)) + "," + format_line("%.9g", *row.value)
               : std::string("none,,");
    for (const double value : {row.nats, std::exp(row.nats), row.next_token_entropy, row.attention_entropy, row.R_mean,
                               row.coupling, row.temperature, row.gate})
      csv += format_line(",%.9g", value);
    csv += "\n";
  }
  return csv;
}

rbar::LineChart chart_of(const std::vector<InterventionRow>& rows, const Arguments& a) {
  rbar::LineChart chart{.title = a.on + " set to a value, in " +
                                 (a.layer < 0 ? std::string("every layer") : "layer " + std::to_string(a.layer)),
                        .x_label = a.on,
                        .y_label = "nats more than without the intervention"};
  struct Quantity {
    const char* name;
    double InterventionRow::*value;
  };
  const InterventionRow& untouched = rows.front();
  for (const Quantity& quantity :
       {Quantity{"loss", &InterventionRow::nats}, Quantity{"next-token entropy", &InterventionRow::next_token_entropy},
        Quantity{"attention entropy", &InterventionRow::attention_entropy}}) {
    rbar::LineSeries series{.name = quantity.name, .markers = true};
    for (const InterventionRow& row : rows) {
      if (!row.value) continue;
      series.x.push_back(*row.value);
      series.y.push_back(row.*quantity.value - untouched.*quantity.value);
    }
    chart.series.push_back(std::move(series));
  }
  chart.horizontal.push_back({0, "without"});
  chart.vertical.push_back({own_value(untouched, a.on), "the model's own mean"});
  return chart;
}

}  // namespace

int intervene(const Arguments& a) {
  const auto model = load_model(a.from);
  const AnyTokenizer tokenizer = load_tokenizer(a.from);
  const rbar::TokenDataset data(tokenizer.encode(read_text(a.text)));
  InterventionSweep sweep{.on = a.on, .values = a.values, .layer = a.layer, .max_windows = a.windows};
  sweep.window = a.context_given ? a.training.config.window : model->longest_context();
  const auto rows = model->intervene(a.split == "all" ? data.tokens() : data.validation(), sweep);

  std::printf("%-24s %10s %12s %18s %18s %8s\n", a.on.c_str(), "nats", "perplexity", "next-token entropy",
              "attention entropy", "R");
  for (const InterventionRow& row : rows)
    std::printf("%-24s %10.4f %12.3f %18.4f %18.4f %8.4f\n", row.value ? format_line("%g", *row.value).c_str() : "none",
                row.nats, std::exp(row.nats), row.next_token_entropy, row.attention_entropy, row.R_mean);
  if (!a.csv.empty()) rbar::write_file_atomically(a.csv, csv_of(rows, a));
  if (!a.svg.empty()) rbar::write_file_atomically(a.svg, line_chart_svg(chart_of(rows, a)));
  if (a.json) {
    nlohmann::ordered_json json;
    json["on"] = a.on;
    for (const InterventionRow& row : rows) {
      nlohmann::ordered_json line;
      if (row.value) line["value"] = *row.value;
      line["nats"] = row.nats;
      line["next_token_entropy"] = row.next_token_entropy;
      line["attention_entropy"] = row.attention_entropy;
      line["R_mean"] = row.R_mean;
      json["rows"].push_back(std::move(line));
    }
    std::printf("%s\n", json.dump().c_str());
  }
  return 0;
}

}  // namespace rbar_lm
