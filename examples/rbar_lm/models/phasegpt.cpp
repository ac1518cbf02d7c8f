#include "../model_of.hpp"

#include "rbar/model/phasegpt.hpp"

static const bool registered =
    rbar_lm::register_family<rbar::PhaseGPT<float>>("GPT-2 with layers of coupled oscillators");
