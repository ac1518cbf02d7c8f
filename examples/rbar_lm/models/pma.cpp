#include "../phase_tools.hpp"

static const bool registered = rbar_lm::register_family<rbar::PhaseModulatedAttentionLM<float>>(
    "state space, then attention whose heads are coupled oscillators");
