#include "../model_of.hpp"

#include "rbar/model/pma_lm.hpp"

static const bool registered = rbar_lm::register_family<rbar::PhaseModulatedAttentionLM<float>>(
    "state space, then attention whose heads are coupled oscillators");
