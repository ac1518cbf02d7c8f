// The commands, over models and tokenizers whose types are chosen at run time.
#include "any_model.hpp"
#include "arguments.hpp"

#include "rbar/audit/lane_report_html.hpp"
#include "rbar/io/file.hpp"
#include "rbar/io/json.hpp"
#include "rbar/train/progress.hpp"

#include <algorithm>
#include <cstdio>

namespace rbar_lm {
namespace {

using Json = nlohmann::ordered_json;

// A saved model with --from, else a fresh one. A fresh one reads bytes unless the settings say otherwise.
std::unique_ptr<AnyModel> model_of(const Arguments& a) {
  if (!a.from.empty()) {
    rbar::require(a.fields.empty() && a.config_file.empty(), "arguments", "--from", "no fields of a config beside it",
                  a.fields.empty() ? "--config" : a.fields.front());
    return load_model(a.from);
  }
  nlohmann::json settings = settings_of(a);
  if (!settings.contains("vocab_size")) settings["vocab_size"] = 256;
  return family(a.model).create(settings, a.seed);
}

// For inference: in bf16 if asked for, else packed, which changes no bit.
void freeze(AnyModel& model, const Arguments& a) {
  if (a.bf16)
    model.round_weights(*a.bf16);
  else
    model.pack_weights();
}

void print_json(const Arguments& a, const Json& result) {
  if (a.json) std::printf("%s\n", result.dump().c_str());
}

void print_evaluation(const rbar::Evaluation& e) {
  std::printf("validation   %.4f nats a token, %.4f bits a byte, perplexity %.2f (%lld tokens)\n", e.nats,
              e.bits_per_byte, e.perplexity, static_cast<long long>(e.predicted_tokens));
}

void add_evaluation(Json& result, const rbar::Evaluation& e) {
  result["val_nats"] = e.nats;
  result["val_bpc"] = e.bits_per_byte;
  result["val_perplexity"] = e.perplexity;
  result["val_tokens"] = e.predicted_tokens;
}

// What is said of a model beside --resume must be so: the folder's model goes on, whatever is said.
void require_as_saved(const AnyModel& model, const Corpus& corpus, const nlohmann::json& settings, const Arguments& a) {
  const auto require_same = [&a](const std::string& option, const std::string& saved, const std::string& said) {
    rbar::require(saved == said, "arguments", option, saved + ", as " + a.out + " has it (--resume goes on with that)",
                  said);
  };
  if (a.model_given) require_same("--model", model.family(), a.model);
  if (a.tokenizer_given) require_same("--tokenizer", corpus.tokenizer.kind, a.tokenizer);
  if (settings.empty()) return;
  const auto said = fresh_model(model.family(), settings, corpus, a.training.config.window, a.seed)->config();
  const Json saved = model.config();
  for (const auto& [name, ignored] : settings.items()) require_same(name, saved[name].dump(), said[name].dump());
}

rbar::CausalityReport report_causality(const AnyModel& model, const Arguments& a) {
  return model.causality({.trials = a.audit_trials, .seed = a.seed});
}

}  // namespace

// "--d-model=256" and "--d_model 256" are the same; a value is JSON where it reads as JSON and a string otherwise.
nlohmann::json settings_of(const Arguments& a) {
  nlohmann::json settings = nlohmann::json::object();
  if (!a.config_file.empty()) settings = rbar::read_json(a.config_file);
  rbar::require(settings.is_object(), "--config", a.config_file, "a JSON object", settings.type_name());
  settings.erase("model_type");
  for (std::size_t i = 0; i < a.fields.size(); ++i) {
    const std::string& word = a.fields[i];
    rbar::require(word.starts_with("--") && word.size() > 2, "arguments", "word", "an option", "'" + word + "'");
    const std::size_t equals = word.find('=');
    std::string name = word.substr(2, equals == word.npos ? word.npos : equals - 2);
    std::replace(name.begin(), name.end(), '-', '_');
    rbar::require(equals != word.npos || i + 1 < a.fields.size(), "arguments", word, "a value", "nothing");
    const std::string value = equals == word.npos ? a.fields[++i] : word.substr(equals + 1);
    nlohmann::json parsed = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
    settings[name] = parsed.is_discarded() ? nlohmann::json(value) : std::move(parsed);
  }
  return settings;
}

int train(const Arguments& a) {
  rbar::require(!a.resume || !a.out.empty(), "arguments", "--resume", "--out, the folder to go on from", "no --out");
  const std::string text = read_text(a.text);
  const nlohmann::json settings = settings_of(a);
  const Corpus corpus(a.resume ? load_tokenizer(a.out) : make_tokenizer(a.tokenizer, text, a.vocabulary, a.merges),
                      text);
  const Index window = a.training.config.window;
  const auto model = a.resume ? load_model(a.out) : fresh_model(a.model, settings, corpus, window, a.seed);
  if (a.resume) require_as_saved(*model, corpus, settings, a);
  const TrainingResult result = rbar_lm::train(
      *model, corpus, a.training,
      {.folder = a.out, .csv = a.csv, .resume = a.resume, .allow_changes = a.allow_changes, .quiet = a.quiet});
  const double speed = result.seconds > 0 ? static_cast<double>(result.tokens) / result.seconds : 0;
  const double share = attention_share(*model, corpus.data.validation(), window);

  std::printf("parameters   %lld\n", static_cast<long long>(count_parameters(*model)));
  std::printf("training     %lld tokens in %.1f s: %.0f tokens/s\n", static_cast<long long>(result.tokens),
              result.seconds, speed);
  print_evaluation(result.validation);
  Json json;
  json["model"] = model->family();
  json["text"] = a.text;
  json["tokenizer"] = corpus.tokenizer.kind;
  json["parameters"] = count_parameters(*model);
  json["steps"] = a.training.config.steps;
  json["batch"] = a.training.config.batch_size;
  json["context"] = window;
  json["products"] = name_of(a.training.config.products);
  json["seed"] = a.seed;
  json["threads"] = rbar::num_threads();
  add_evaluation(json, result.validation);
  json["tokens_per_s"] = speed;
  json["attention_share"] = share;
  json["flops_per_token"] = model->flops_per_token(window, share);
  if (a.json) {
    const auto causality = report_causality(*model, a);
    json["causality_leak"] = causality.leak;
    json["causal"] = causality.passed();
  }
  json["config"] = model->config();
  print_json(a, json);
  return 0;
}

int eval(const Arguments& a) {
  const auto model = load_model(a.from);
  const Index parameters = count_parameters(*model);
  freeze(*model, a);
  const AnyTokenizer tokenizer = load_tokenizer(a.from);
  const rbar::TokenDataset data(tokenizer.encode(read_text(a.text)));
  const rbar::TokenSpan tokens = a.split == "all" ? data.tokens() : data.validation();
  rbar::EvaluationOptions options;
  options.window = a.context_given ? a.training.config.window : model->longest_context();
  options.bytes_per_token = bytes_per_token(tokenizer, tokens);
  const rbar::Evaluation evaluation = model->evaluate(tokens, options);
  print_evaluation(evaluation);
  Json json;
  json["model"] = model->family();
  json["text"] = a.text;
  json["split"] = a.split;
  json["context"] = options.window;
  json["parameters"] = parameters;
  if (a.bf16) json["bf16"] = name_of(*a.bf16);
  add_evaluation(json, evaluation);
  json["attention_share"] = attention_share(*model, tokens, options.window);
  print_json(a, json);
  return 0;
}

int generate(const Arguments& a) {
  const auto model = load_model(a.from);
  freeze(*model, a);
  const AnyTokenizer tokenizer = load_tokenizer(a.from);
  std::vector<Token> prompt = tokenizer.encode(a.prompt.empty() ? std::string("\n") : a.prompt);
  rbar::GenerateOptions options;
  options.max_new_tokens = a.new_tokens;
  options.temperature = a.temperature;
  options.top_k = a.top_k;
  options.top_p = a.top_p;
  options.seed = a.seed;
  options.use_cache = !a.no_cache;
  const std::vector<Token> tokens = model->generate(prompt, options);
  const std::string continued = tokenizer.decode(tokens);
  std::printf("%s%s\n", a.prompt.c_str(), continued.c_str());
  // Nothing else ends a text early here: no eos is asked for.
  const bool refused = static_cast<Index>(tokens.size()) < options.max_new_tokens;
  if (refused) std::fprintf(stderr, "the model refuses to go on after %zu tokens\n", tokens.size());
  Json json;
  json["prompt"] = a.prompt;
  json["tokens"] = tokens;
  json["refused"] = refused;
  if (a.bf16) json["bf16"] = name_of(*a.bf16);
  json["seed"] = a.seed;
  print_json(a, json);
  return 0;
}

int audit(const Arguments& a) {
  const auto model = model_of(a);
  const rbar::CausalityReport report = report_causality(*model, a);
  std::printf("%s\n", report.text().c_str());
  Json json;
  json["model"] = model->family();
  json["causality_leak"] = report.leak;
  json["causal"] = report.passed();
  json["seed"] = a.seed;
  print_json(a, json);
  return report.passed() ? 0 : 1;
}

int inspect(const Arguments& a) {
  const auto model = model_of(a);
  const Json config = model->config();
  std::printf("config\n");
  for (const auto& [name, value] : config.items()) std::printf("  %-24s %s\n", name.c_str(), value.dump().c_str());
  std::printf("parameters\n");
  for (const auto& [name, shape] : model->parameters()) {
    std::string sizes;
    for (const Index size : shape) sizes += (sizes.empty() ? "" : " x ") + std::to_string(size);
    std::printf("  %-48s %s\n", name.c_str(), sizes.c_str());
  }
  std::printf("  %-48s %lld\n", "in all", static_cast<long long>(count_parameters(*model)));
  Json json;
  json["model"] = model->family();
  json["parameters"] = count_parameters(*model);
  json["config"] = config;
  if (!a.prompt.empty()) {
    const AnyTokenizer tokenizer = a.from.empty() ? make_tokenizer("bytes", a.prompt, "", "") : load_tokenizer(a.from);
    const std::vector<Token> tokens = tokenizer.encode(a.prompt);
    const rbar::RoutingReport routing = model->routing(tokens, tokenizer.pieces(tokens));
    if (!routing.layers.empty()) std::printf("routing\n%s", routing.text(rbar::is_terminal(stdout)).c_str());
    json["attention_share"] = attention_share(*model, tokens, model->longest_context());
  }
  print_json(a, json);
  return 0;
}

int lanes(const Arguments& a) {
  const auto model = load_model(a.from);
  const AnyTokenizer tokenizer = load_tokenizer(a.from);
  const std::vector<Token> tokens = tokenizer.encode(a.prompt);
  rbar::require(!tokens.empty(), "arguments", "--prompt", "some text", "none");
  const rbar::LaneReport report = model->lanes(tokens, tokenizer.pieces(tokens));
  if (!a.html.empty()) rbar::write_file_atomically(a.html, lane_report_html(report, "Lanes of " + a.from));
  std::printf("%s", report.text(rbar::is_terminal(stdout)).c_str());
  Json json;
  json["model"] = model->family();
  json["tokens"] = tokens.size();
  for (const rbar::ComputeLane lane : rbar::all_compute_lanes)
    json["shares"][name_of(lane)] = report.summary(lane).share;
  json["refused"] = report.summary().refused;
  json["layers_used"] = report.summary().layers_used;
  json["energy_out"] = report.summary().energy_out;
  print_json(a, json);
  return 0;
}

}  // namespace rbar_lm
