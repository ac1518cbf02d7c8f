#include "../model_of.hpp"

#include "rbar/model/transformer.hpp"

static const bool registered =
    rbar_lm::register_family<rbar::TransformerModel<float>>("decoder-only transformer, GPT-2 or Llama style");
