// rbar_lm: train, evaluate, sample, audit and inspect language models from the command line.
//   rbar_lm train --model cort --text shakespeare.txt --tokenizer chars --steps 1500 --out run
//   rbar_lm generate --from run --prompt "ROMEO:"
//   rbar_lm sweep plan.json --out runs --jobs 2
//   rbar_lm intervene --from run --text shakespeare.txt --on order_parameter --values 0,0.5,1
// Exit code 0: fine; 1: `audit` found a leak, or a run of a sweep failed now (`--report` trains nothing, and ends with
// 0 whatever failed before); 2: bad arguments or files, said in one line on stderr.
#include "arguments.hpp"

#include "rbar/core/parallel.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>

namespace rbar_lm {
namespace {

constexpr const char* footer =
    "Every field of a model's config is an option too, such as --d_model 256; `rbar_lm inspect --model cort` lists "
    "them.";

// Options of several commands.
void add_seed(CLI::App& command, Arguments& a) {
  command.add_option("--seed", a.seed, "Seed of weights, windows, dropout and sampling")->capture_default_str();
}
void add_common(CLI::App& command, Arguments& a) {
  command.add_option("--threads", a.threads, "Threads (0: all cores); the results do not depend on it")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_flag("--json", a.json, "End with one line of JSON");
  command.add_flag("--quiet", a.quiet, "No progress");
  command.footer(footer);
}
void add_fresh_model(CLI::App& command, Arguments& a) {
  command.add_option("--model", a.model, "Family of the model")->capture_default_str();
  command.add_option("--config", a.config_file, "JSON file with fields of the model's config");
  command.allow_extras();  // fields of the config, which only the family knows
}
void add_saved_model(CLI::App& command, Arguments& a) {
  command.add_option("--from", a.from, "Folder of a trained model")->required();
}
void add_bf16(CLI::App& command, Arguments& a) {
  command
      .add_option_function<std::string>(
          "--bf16",
          [&a](const std::string& name) {
            if (!parse(name, a.bf16.emplace())) throw CLI::ValidationError("--bf16", "weights or both, got " + name);
          },
          "Round to bf16, with sums in fp32: weights (half the memory, faster decoding), or both, the activations that "
          "are multiplied with them too (faster on many tokens)")
      ->expected(0, 1)
      ->default_str("weights");
}
void add_text(CLI::App& command, Arguments& a) {
  command.add_option("--text", a.text, "Text file; the first 90% train, the rest validates")->required();
}

void add_split(CLI::App& command, Arguments& a) {
  command.add_option("--split", a.split, "validation (the last 10%) or all")
      ->check(CLI::IsMember({"validation", "all"}))
      ->capture_default_str();
}
CLI::Option* add_context(CLI::App& command, Arguments& a) {
  return command.add_option("--context", a.training.config.window, "Tokens in a window (default: the model's longest)");
}

// All of a training run but where it is kept.
void add_training(CLI::App& command, Arguments& a) {
  rbar::TrainingConfig& t = a.training.config;
  command.add_option("--tokenizer", a.tokenizer, "bytes, chars, or bpe with its two files")->capture_default_str();
  command.add_option("--bpe-vocabulary", a.vocabulary, "encoder.json of GPT-2");
  command.add_option("--bpe-merges", a.merges, "vocab.bpe of GPT-2");
  command.add_option("--steps", t.steps, "Optimiser steps")->capture_default_str();
  command.add_option("--batch", t.batch_size, "Windows in a forward pass")->capture_default_str();
  command.add_option("--accumulation", t.accumulation, "Forward passes in a step")->capture_default_str();
  command.add_flag("--recompute", t.recompute, "Keep less of a pass and compute it again: less memory, more time");
  command.add_flag_callback(
      "--bf16", [&t] { t.products = rbar::Products::bf16; },
      "Multiply in bf16, with sums in fp32: faster on processors with AVX-512 BF16; what is kept and saved stays fp32");
  command.add_option("--context", t.window, "Tokens in a window")->capture_default_str();
  command.add_option("--lr", t.optimizer.learning_rate, "Peak learning rate")->capture_default_str();
  command.add_option("--beta1", t.optimizer.beta1, "Decay of AdamW's first moment")->capture_default_str();
  command.add_option("--beta2", t.optimizer.beta2, "Decay of AdamW's second moment")->capture_default_str();
  command.add_option("--weight-decay", t.optimizer.weight_decay, "Weight decay")->capture_default_str();
  command.add_option_function<std::string>(
      "--decay",
      [&t](const std::string& name) {
        if (!parse(name, t.optimizer.decay)) throw CLI::ValidationError("--decay", "matrices or all, got " + name);
      },
      "What decays: matrices or all");
  command.add_option_function<std::string>(
      "--schedule",
      [&t](const std::string& name) {
        if (!parse(name, t.schedule.schedule))
          throw CLI::ValidationError("--schedule", "constant or cosine, got " + name);
      },
      "Learning rate after the warm-up: constant or cosine");
  command.add_option("--warmup", t.schedule.warmup_steps, "Steps of linear warm-up")->capture_default_str();
  command.add_option("--min-ratio", t.schedule.min_ratio, "Share of the peak where the cosine ends")
      ->capture_default_str();
  command.add_option("--clip", t.clip_norm, "Largest norm of the gradient (0: no clipping)")->capture_default_str();
  command.add_option("--validate-every", a.training.validate_every, "Steps between validations (0: only at the end)");
  command.add_option("--validate-tokens", a.training.validate_tokens, "Tokens of a validation (0: all of the part)")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--save-every", a.training.save_every, "Steps between checkpoints in --out (0: only at the end)");
}
void add_run_folder(CLI::App& command, Arguments& a) {
  command.add_option("--out", a.out, "Folder for the model, its tokenizer and the checkpoint");
  command.add_flag("--resume", a.resume, "Go on from the checkpoint in --out: bit for bit the uninterrupted run");
  command.add_flag("--allow-changes", a.allow_changes,
                   "With --resume: other options than the run had, such as more steps");
  command.add_option("--csv", a.csv, "Log with one line a step");
}

void add_sweep(CLI::App& command, Arguments& a) {
  command.add_option("--out", a.out, "Folder of the runs and tables; what is finished there is not trained again")
      ->required();
  command.add_option("--jobs", a.jobs, "Runs at once, each on one thread; the results do not depend on it")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_flag("--allow-changes", a.allow_changes, "Train runs anew that the plan has changed since");
  command.add_flag("--report", a.report, "Only write the tables and pictures of what is there");
}

void add_sampling(CLI::App& command, Arguments& a) {
  command.add_option("--prompt", a.prompt, "Text to continue");
  command.add_option("--tokens", a.new_tokens, "New tokens")->check(CLI::NonNegativeNumber)->capture_default_str();
  command.add_option("--temperature", a.temperature, "0: always the likeliest token")->capture_default_str();
  command.add_option("--top-k", a.top_k, "Sample among the k likeliest (0: all)")->capture_default_str();
  command.add_option("--top-p", a.top_p, "Sample among the likeliest that hold this probability")
      ->capture_default_str();
  command.add_flag("--no-cache", a.no_cache, "Compute every token from the whole context, without the KV cache");
}

int run(int count, char** values) {
  Arguments a;
  CLI::App app("Train, evaluate, sample, audit and inspect language models.", "rbar_lm");
  app.require_subcommand(1);

  CLI::App& train_command = *app.add_subcommand("train", "Train a model on a text");
  add_fresh_model(train_command, a);
  add_text(train_command, a);
  add_training(train_command, a);
  add_run_folder(train_command, a);

  CLI::App& eval_command = *app.add_subcommand("eval", "Loss of a trained model on a text");
  add_saved_model(eval_command, a);
  add_bf16(eval_command, a);
  add_text(eval_command, a);
  add_split(eval_command, a);
  auto* eval_context = add_context(eval_command, a);

  CLI::App& generate_command = *app.add_subcommand("generate", "Continue a prompt");
  add_saved_model(generate_command, a);
  add_bf16(generate_command, a);
  add_sampling(generate_command, a);

  CLI::App& audit_command = *app.add_subcommand("audit", "Does the model see the future? Exit code 1 if so");
  add_fresh_model(audit_command, a);
  audit_command.add_option("--from", a.from, "Folder of a trained model (instead of a fresh --model)");
  audit_command.add_option("--trials", a.audit_trials, "Tokens to change")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();

  CLI::App& inspect_command = *app.add_subcommand("inspect", "Config, parameters, and the routing of a --prompt");
  add_fresh_model(inspect_command, a);
  inspect_command.add_option("--from", a.from, "Folder of a trained model (instead of a fresh --model)");
  inspect_command.add_option("--prompt", a.prompt, "Show which of its tokens go to attention");

  CLI::App& lanes_command = *app.add_subcommand("lanes", "Which lanes the tokens of a --prompt take, and why");
  add_saved_model(lanes_command, a);
  lanes_command.add_option("--prompt", a.prompt, "Text to look at")->required();
  lanes_command.add_option("--html", a.html, "Write the report as one HTML file, too");

  CLI::App& sweep_command = *app.add_subcommand("sweep", "Train all runs of a plan on the same data and compare them");
  sweep_command.add_option("plan", a.plan, "JSON file: text, seeds, train, runs")->required();
  sweep_command.add_option("--text", a.text, "Text file instead of the plan's");
  sweep_command
      .add_option("--only", a.only, "Train these runs only, by name or folder, such as torus,torus-lr0.001-seed2")
      ->delimiter(',');
  add_sweep(sweep_command, a);

  CLI::App& ablate_command = *app.add_subcommand("ablate", "Sweep over a pma model without each of its parts");
  add_text(ablate_command, a);
  ablate_command.add_option("--config", a.config_file, "JSON file with fields of the pma model's config");
  ablate_command.allow_extras();
  add_training(ablate_command, a);
  ablate_command.add_option("--seeds", a.seeds, "Seeds, such as 1,2,3 (default: --seed)")->delimiter(',');
  ablate_command.add_option("--only", a.only, "Some of the ablations, such as full,no_gate,standard")->delimiter(',');
  add_sweep(ablate_command, a);

  CLI::App& intervene_command = *app.add_subcommand("intervene", "Set the phases of a pma model to values");
  add_saved_model(intervene_command, a);
  add_text(intervene_command, a);
  add_split(intervene_command, a);
  auto* intervene_context = add_context(intervene_command, a);
  intervene_command.add_option("--on", a.on, "What is set")
      ->required()
      ->check(CLI::IsMember({"coupling", "order_parameter", "temperature", "gate", "phase"}));
  intervene_command.add_option("--values", a.values, "Values, such as 0,0.5,1")->delimiter(',')->required();
  intervene_command.add_option("--layer", a.layer, "Layer of attention, from 0 (default: all)")
      ->check(CLI::NonNegativeNumber);
  intervene_command.add_option("--windows", a.windows, "Windows of the text (0: all)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  intervene_command.add_option("--csv", a.csv, "Table with one line a value");
  intervene_command.add_option("--svg", a.svg, "Picture of the entropies over the values");

  struct Command {
    CLI::App* app;
    int (*run)(const Arguments&);
  };
  const Command commands[] = {{&train_command, train}, {&eval_command, eval},       {&generate_command, generate},
                              {&audit_command, audit}, {&inspect_command, inspect}, {&lanes_command, lanes},
                              {&sweep_command, sweep}, {&ablate_command, ablate},   {&intervene_command, intervene}};
  for (const Command& command : commands) {
    if (command.app != &sweep_command) add_seed(*command.app, a);  // a plan has its seeds
    add_common(*command.app, a);
  }

  try {
    app.parse(count, values);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "rbar_lm: %s\n", error.what());
    return 2;
  }
  a.context_given = eval_context->count() + intervene_context->count() > 0;
  a.model_given = train_command["--model"]->count() > 0;
  a.tokenizer_given = train_command["--tokenizer"]->count() > 0;
  a.training.config.seed = a.seed;
  rbar::set_num_threads(a.threads > 0 ? a.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    a.fields = command.app->remaining();
    return command.run(a);
  }
  return 2;
}

}  // namespace
}  // namespace rbar_lm

int main(int count, char** values) {
  try {
    return rbar_lm::run(count, values);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rbar_lm: %s\n", error.what());
    return 2;
  }
}
