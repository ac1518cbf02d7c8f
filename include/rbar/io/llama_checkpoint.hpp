// Llama-style weights in a safetensors file, under Llama's own names:
//   token_embedding.weight, layers.N.{attention_norm, attention.{wq,wk,wv,wo}, ffn_norm,
//   feed_forward.{w1,w2,w3}}.weight, norm.weight, and output.weight where the head is not tied.
// Rotary pairs are interleaved (x₂ᵢ, x₂ᵢ₊₁), as in those checkpoints.
#pragma once

#include "rbar/io/json.hpp"
#include "rbar/io/safetensors.hpp"
#include "rbar/model/transformer.hpp"

#include <filesystem>
#include <string>
#include <utility>

namespace rbar {

namespace detail {

// "layers.3.attention.q_proj.weight" -> "layers.3.attention.wq.weight".
inline std::string llama_name(std::string name) {
  constexpr std::pair<const char*, const char*> renamed[] = {{"attention.q_proj", "attention.wq"},
                                                             {"attention.k_proj", "attention.wk"},
                                                             {"attention.v_proj", "attention.wv"},
                                                             {"attention.out_proj", "attention.wo"},
                                                             {"feed_forward.gate", "feed_forward.w1"},
                                                             {"feed_forward.down", "feed_forward.w2"},
                                                             {"feed_forward.up", "feed_forward.w3"},
                                                             {"norm1", "attention_norm"},
                                                             {"norm2", "ffn_norm"},
                                                             {"final_norm", "norm"},
                                                             {"lm_head", "output"}};
  for (const auto& [ours, theirs] : renamed)
    if (const auto at = name.find(ours); at != std::string::npos)
      return name.replace(at, std::string(ours).size(), theirs);
  return name;
}

inline Index llama_size(const nlohmann::json& json, const std::string& path, const char* key) {
  const auto found = json.find(key);
  const bool valid = found != json.end() && found->is_number_integer() && *found > 0 && *found < (1 << 30);
  require(valid, "load_llama", path + ": config." + key, "a positive integer",
          found == json.end() ? "none" : printable(found->dump(-1, ' ', true)));
  return found->template get<Index>();
}

}  // namespace detail

// The sizes come from the file's metadata: "config", a JSON object with dim, hidden_dim, n_layers, n_heads,
// n_kv_heads, vocab_size, max_seq_len. Errors: a file that is no such checkpoint, missing sizes, missing or
// wrongly shaped tensors. Tensors that the model does not have are ignored.
template <class T = float>
TransformerModel<T> load_llama(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto metadata = file.metadata().find("config");
  require(metadata != file.metadata().end(), "load_llama", file.path(), "metadata named config", "none");
  const nlohmann::json json = nlohmann::json::parse(metadata->second, nullptr, /*allow_exceptions=*/false);
  require(json.is_object(), "load_llama", file.path() + ": config", "a JSON object",
          detail::printable(metadata->second));
  const auto size = [&](const char* key) { return detail::llama_size(json, file.path(), key); };
  TransformerConfig config =
      TransformerConfig::llama_style(size("vocab_size"), size("dim"), size("n_layers"), size("n_heads"),
                                     size("n_kv_heads"), size("hidden_dim"), size("max_seq_len"));
  config.tie_embeddings = !file.contains("output.weight");
  Rng rng;  // the initial values are all overwritten
  TransformerModel<T> model(config, rng);
  for (const auto& parameter : parameters_of(model)) {
    const std::string name = detail::llama_name(parameter.name);
    require_shape("load_llama", file.path() + ": " + name, file.at(name).shape, parameter.shape);
    file.copy_to<T>(name, parameter.values());
  }
  return model;
}

}  // namespace rbar
