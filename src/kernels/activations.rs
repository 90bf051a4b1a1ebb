//! The constants of `shaders/activations.wgsl`, which all kernels of the recurrence have.

use bytemuck::{Pod, Zeroable};

use crate::spec::activation::ClippedActivation;
use crate::spec::config::GruConfig;

args! {
    /// The override constants of `shaders/activations.wgsl`, in the order of their names there.
    ActivationConstants {
        /// The code of the activation of r and z.
        gate,
        /// Its α, the bits of an f32, like all numbers here.
        gate_alpha,
        /// Its β.
        gate_beta,
        /// Its least value.
        gate_least,
        /// Its largest value.
        gate_most,
        /// The code of the activation of n.
        candidate,
        candidate_alpha,
        candidate_beta,
        candidate_least,
        candidate_most,
        /// 1: values are between the least and the largest.
        clips,
        /// 1: the second direction has the activations that follow.
        reverse_differs,
        reverse_gate,
        reverse_gate_alpha,
        reverse_gate_beta,
        reverse_gate_least,
        reverse_gate_most,
        reverse_candidate,
        reverse_candidate_alpha,
        reverse_candidate_beta,
        reverse_candidate_least,
        reverse_candidate_most,
    }
}

impl ActivationConstants {
    /// Returns the constants of both directions of a model.
    pub fn new(config: &GruConfig) -> Self {
        let [forward, reverse] = [0, 1].map(|direction| config.functions(direction));
        let [gate, candidate] = &forward;
        let [reverse_gate, reverse_candidate] = &reverse;
        let flags = [config.clip.is_some(), reverse != forward].map(u32::from);
        let all = [
            &constants(gate)[..],
            &constants(candidate),
            &flags,
            &constants(reverse_gate),
            &constants(reverse_candidate),
        ];
        *bytemuck::from_bytes(bytemuck::cast_slice(&all.concat()))
    }
}

/// Returns a function's code, α, β, least and largest value.
fn constants(function: &ClippedActivation) -> [u32; 5] {
    let numbers = function.activation.numbers();
    let number = |i: usize| numbers.get(i).copied().unwrap_or_default();
    let [least, most] = function.bounds.unwrap_or_default();
    let [alpha, beta, least, most] = [number(0), number(1), least, most].map(f32::to_bits);
    [function.activation.code(), alpha, beta, least, most]
}

const ACTIVATION_CONSTANTS: [&str; 22] = [
    "GATE",
    "GATE_ALPHA",
    "GATE_BETA",
    "GATE_LEAST",
    "GATE_MOST",
    "CANDIDATE",
    "CANDIDATE_ALPHA",
    "CANDIDATE_BETA",
    "CANDIDATE_LEAST",
    "CANDIDATE_MOST",
    "CLIPS",
    "REVERSE_DIFFERS",
    "REVERSE_GATE",
    "REVERSE_GATE_ALPHA",
    "REVERSE_GATE_BETA",
    "REVERSE_GATE_LEAST",
    "REVERSE_GATE_MOST",
    "REVERSE_CANDIDATE",
    "REVERSE_CANDIDATE_ALPHA",
    "REVERSE_CANDIDATE_BETA",
    "REVERSE_CANDIDATE_LEAST",
    "REVERSE_CANDIDATE_MOST",
];

/// Returns a kernel's own constants, followed by those of its activations.
pub(super) const fn with_activations<const OWN: usize, const ALL: usize>(
    own: [&'static str; OWN],
) -> [&'static str; ALL] {
    assert!(ALL == OWN + ACTIVATION_CONSTANTS.len());
    let mut all = [""; ALL];
    let mut i = 0;
    while i < ALL {
        all[i] = if i < OWN { own[i] } else { ACTIVATION_CONSTANTS[i - OWN] };
        i += 1;
    }
    all
}
