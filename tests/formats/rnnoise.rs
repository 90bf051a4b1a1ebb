//! A real model: RNNoise's network as the crate `nnnoiseless` ships it, with 8-bit weights and
//! three GRUs of its own definition (reset before, z keeps, ReLU candidates). Over a second of
//! speech-like sound, the states of all units and the final speech probability equal the crate's on
//! every device.
//!
//! The crate does not expose its states. It exposes the speech probability, computed from the first
//! GRU's states, and the sound after 22 band gains, computed from the third's. The test therefore
//! reads the states through probes: networks with the same weights whose output layer passes one
//! unit. For the second GRU's states, a probe's third GRU repeats its input.

use std::f32::consts::TAU;
use std::path::{Path, PathBuf};

use crate::common::{devices, metadata, rng};
use gru_wgpu::formats::Cell;
use gru_wgpu::{Activation, Bias, Device, Gru, GruConfig, Params, Reset, Update};
use ndarray::{Array, Array1, Array2, Axis, Dimension, concatenate, s};
use nnnoiseless::{DenoiseFeatures, DenoiseState, RnnModel};
use rand::RngExt;

const FRAME: usize = DenoiseState::FRAME_SIZE; // 480 samples, 10 ms
const FRAMES: usize = 100;
const FEATURES: usize = 42;
const BANDS: usize = 22;

/// The value of the stored weight 1.
const SCALE: f32 = 1.0 / 256.0;
/// The value of the largest stored weight, `i8::MAX`.
const WEIGHT: f64 = 127.0 / 256.0;

// A file's codes of activations.
const TANH: u8 = 0;
const SIGMOID: u8 = 1;
const RELU: u8 = 2;

/// A layer of the file. N is the number of neurons, or three times as many in a GRU: z, r,
/// candidate.
#[derive(Clone)]
struct Layer {
    neurons: usize,
    /// The activation; in a GRU the candidate's.
    activation: u8,
    /// `[inputs, N]`
    weights: Array2<i8>,
    /// `[neurons, N]` in a GRU, `[0, N]` in a dense layer.
    recurrent: Array2<i8>,
    /// `[N]`
    bias: Array1<i8>,
}

impl Layer {
    fn dense(inputs: usize, neurons: usize) -> Self {
        Self {
            neurons,
            activation: RELU,
            weights: Array2::zeros((inputs, neurons)),
            recurrent: Array2::zeros((0, neurons)),
            bias: Array1::zeros(neurons),
        }
    }

    fn gru(inputs: usize, neurons: usize) -> Self {
        let recurrent = Array2::zeros((neurons, 3 * neurons));
        Self { neurons, recurrent, ..Self::dense(inputs, 3 * neurons) }
    }

    /// Reads the first layer of `file`, and leaves the others.
    fn read(file: &mut &[i8], zeros: fn(usize, usize) -> Self) -> Self {
        let mut take = |len: usize| {
            let (taken, rest) = file.split_at(len);
            *file = rest;
            taken.to_vec()
        };
        let head = take(3);
        let mut layer = zeros(head[0] as usize, head[1] as usize);
        layer.activation = head[2] as u8;
        for array in [&mut layer.weights, &mut layer.recurrent] {
            *array = Array2::from_shape_vec(array.dim(), take(array.len())).unwrap();
        }
        layer.bias = take(layer.bias.len()).into();
        layer
    }

    fn write(&self, file: &mut Vec<u8>) {
        file.extend([self.weights.nrows() as u8, self.neurons as u8, self.activation]);
        let weights = self.weights.iter().chain(&self.recurrent).chain(&self.bias);
        file.extend(weights.map(|&weight| weight as u8));
    }

    /// Returns this GRU with 127 neurons, the maximum. The added neurons read nothing and no other
    /// neuron reads them; after t steps from 0 their states are `WEIGHT · (1 − keep()ᵗ)`.
    fn with_constants(&self) -> Self {
        let (n, all) = (self.neurons, 127);
        let mut more = Self::gru(self.weights.nrows(), all);
        for gate in 0..3 {
            let (from, to) = (gate * n..(gate + 1) * n, gate * all..gate * all + n);
            let columns = s![.., from.clone()];
            more.weights.slice_mut(s![.., to.clone()]).assign(&self.weights.slice(columns));
            more.recurrent.slice_mut(s![..n, to.clone()]).assign(&self.recurrent.slice(columns));
            more.bias.slice_mut(s![to]).assign(&self.bias.slice(s![from]));
        }
        more.bias.slice_mut(s![n..all]).fill(i8::MIN);
        more.bias.slice_mut(s![2 * all + n..]).fill(i8::MAX);
        more
    }
}

/// σ(−1/2): the smallest z of a neuron without weights, with a bias of −128.
fn keep() -> f64 {
    1.0 / (1.0 + 0.5_f64.exp())
}

#[derive(Clone)]
struct RnnoiseNetwork {
    input_dense: Layer,
    /// Reads the output of `input_dense`.
    vad_gru: Layer,
    /// Reads the outputs of `input_dense` and `vad_gru`, and the features.
    noise_gru: Layer,
    /// Reads the outputs of `vad_gru` and `noise_gru`, and the features.
    denoise_gru: Layer,
    /// The gains of the bands, from `denoise_gru`.
    denoise_output: Layer,
    /// The probability of speech, from `vad_gru`.
    vad_output: Layer,
}

impl RnnoiseNetwork {
    /// Reads RNNoise's network from the file in the crate's folder.
    fn rnnoise() -> Self {
        let bytes = std::fs::read(crate_folder().join("src/weights.rnn")).unwrap();
        let file = &mut bytemuck::cast_slice(&bytes);
        let network = Self {
            input_dense: Layer::read(file, Layer::dense),
            vad_gru: Layer::read(file, Layer::gru),
            noise_gru: Layer::read(file, Layer::gru),
            denoise_gru: Layer::read(file, Layer::gru),
            denoise_output: Layer::read(file, Layer::dense),
            vad_output: Layer::read(file, Layer::dense),
        };
        assert!(file.is_empty());
        let activations = network.layers().map(|layer| layer.activation);
        assert_eq!(activations, [TANH, RELU, RELU, RELU, SIGMOID, SIGMOID]);
        network
    }

    /// Returns the layers in the file's order.
    fn layers(&self) -> [&Layer; 6] {
        let [input, vad, noise] = [&self.input_dense, &self.vad_gru, &self.noise_gru];
        [input, vad, noise, &self.denoise_gru, &self.denoise_output, &self.vad_output]
    }
}

/// The crate's computation.
impl RnnoiseNetwork {
    /// Returns the crate's results for `audio`: sound `[T, 480]` and speech probabilities `[T]`.
    fn run(&self, audio: &[f32]) -> (Array2<f64>, Array1<f64>) {
        let mut file = Vec::new();
        self.layers().iter().for_each(|layer| layer.write(&mut file));
        let mut state = DenoiseState::from_model(RnnModel::from_bytes(&file).unwrap());
        let mut sound = vec![0.0; audio.len()];
        let frames = audio.chunks(FRAME).zip(sound.chunks_mut(FRAME));
        let speech = frames.map(|(frame, sound)| state.process_frame(sound, frame).into());
        let speech = speech.collect();
        let sound = Array2::from_shape_vec((FRAMES, FRAME), sound).unwrap();
        (sound.mapv(f64::from), speech)
    }

    /// Returns `[T, H]`: the crate's states of `vad_gru`, exactly. A ReLU output passes them
    /// unchanged, because none is below 0: each is a mean of the previous one and of a ReLU.
    fn vad_states(&self, audio: &[f32]) -> Array2<f64> {
        let units = self.vad_gru.neurons;
        let mut states = Array2::zeros((FRAMES, units));
        for (unit, mut states) in states.columns_mut().into_iter().enumerate() {
            let mut vad_output = Layer::dense(units, 1);
            vad_output.weights.row_mut(unit).fill(i8::MAX);
            let (_, speech) = Self { vad_output, ..self.clone() }.run(audio);
            states.assign(&(speech / WEIGHT));
        }
        states
    }

    /// Returns `[T, H]`: the crate's states of `denoise_gru`, computed from the sound.
    ///
    /// A probe gives all bands one gain: a constant level, made by constant neurons, plus one unit.
    /// With gains of 1 or more the crate's pitch filter does nothing, so the sound is linear in the
    /// gains. The output of a frame is the first half of the frame fading in, times its gain, plus
    /// the second half of the previous frame fading out, times that one's gain. At the end of the
    /// frame the latter is down to 1e-5, so the sound there depends on this frame's gain alone. The
    /// sound of the constant level gives the factor.
    fn denoise_states(&self, audio: &[f32]) -> Array2<f64> {
        const LAST: usize = 12; // more see the frame before, fewer the rounding
        let units = self.denoise_gru.neurons;
        let mut probe = Self { denoise_gru: self.denoise_gru.with_constants(), ..self.clone() };
        let constants = probe.denoise_gru.neurons - units;
        let level = (1..=FRAMES as i32).map(|t| WEIGHT * (1.0 - keep().powi(t)));
        let level: Array1<f64> = level.map(|state| WEIGHT * constants as f64 * state).collect();
        assert!(level[0] > 1.0);

        let mut sound = |unit: Option<usize>| {
            probe.denoise_output = Layer::dense(units + constants, BANDS);
            let mut weights = probe.denoise_output.weights.view_mut();
            weights.slice_mut(s![units.., ..]).fill(i8::MAX);
            unit.into_iter().for_each(|unit| weights.row_mut(unit).fill(i8::MAX));
            probe.run(audio).0.slice_move(s![.., FRAME - LAST..])
        };
        let plain = sound(None);
        let along_plain = |sound: &Array2<f64>| (sound * &plain).sum_axis(Axis(1));
        let mut states = Array2::zeros((FRAMES, units));
        for (unit, mut states) in states.columns_mut().into_iter().enumerate() {
            let gains = along_plain(&sound(Some(unit))) / along_plain(&plain) * &level;
            // The crate limits a gain to at least 0.6 of the previous one, which would hide the
            // unit's gain.
            assert!(gains.windows(2).into_iter().all(|pair| pair[1] > 0.65 * pair[0]));
            states.assign(&((gains - &level) / WEIGHT));
        }
        states
    }

    /// Returns `[T, H]`: the crate's states of `noise_gru`, as a GRU in the third one's place
    /// repeats them: each of its candidates is one unit times [`WEIGHT`], and its z is constant.
    fn noise_states(&self, audio: &[f32]) -> Array2<f64> {
        let (first, units) = (self.vad_gru.neurons, self.noise_gru.neurons);
        let mut denoise_gru = Layer::gru(self.denoise_gru.weights.nrows(), units);
        let mut candidates = denoise_gru.weights.slice_mut(s![first..first + units, 2 * units..]);
        candidates.diag_mut().fill(i8::MAX);
        denoise_gru.bias.slice_mut(s![..units]).fill(i8::MIN);
        let mut states = Self { denoise_gru, ..self.clone() }.denoise_states(audio);
        let kept = states.slice(s![..-1, ..]).mapv(|state| keep() * state);
        let mut later = states.slice_mut(s![1.., ..]);
        later -= &kept;
        states / ((1.0 - keep()) * WEIGHT)
    }
}

/// Returns `[T, H]`: the output of a dense layer before its activation.
fn dense(layer: &Layer, x: &Array2<f32>) -> Array2<f32> {
    x.dot(&layer.weights.mapv(scaled)) + layer.bias.mapv(scaled)
}

fn scaled(weight: i8) -> f32 {
    f32::from(weight) * SCALE
}

fn sigmoid(a: f32) -> f32 {
    1.0 / (1.0 + (-a).exp())
}

/// Returns `[T, H]`: the states of this library's GRU on `device`.
fn gru(layer: &Layer, x: &Array2<f32>, device: &Device) -> Array2<f32> {
    let [kernel, recurrent] = [&layer.weights, &layer.recurrent].map(|array| array.mapv(scaled));
    let bias = layer.bias.mapv(scaled).into_dyn();
    // The file has Keras' layout.
    let cell = Cell::from_keras(kernel.view(), recurrent.view(), Some(bias.view())).unwrap();
    let config = GruConfig::new(x.ncols(), layer.neurons)
        .with_reset(Reset::Before)
        .with_update(Update::Keeps)
        .with_bias(Bias::One)
        .with_activations(Activation::Sigmoid, Activation::Relu);
    let params = Params::from_cells(&config, &[cell]).unwrap();
    let x = x.view().insert_axis(Axis(1));
    Gru::with_params(params, device).unwrap().forward(x).unwrap().y.remove_axis(Axis(1))
}

/// Returns this library's states of `vad_gru`, `noise_gru` and `denoise_gru`, each `[T, H]`.
fn our_states(
    network: &RnnoiseNetwork,
    features: &Array2<f32>,
    device: &Device,
) -> [Array2<f32>; 3] {
    let beside =
        |parts: [&Array2<f32>; 3]| concatenate(Axis(1), &parts.map(|part| part.view())).unwrap();
    let input = dense(&network.input_dense, features).mapv(f32::tanh);
    let vad = gru(&network.vad_gru, &input, device);
    let noise = gru(&network.noise_gru, &beside([&input, &vad, features]), device);
    let denoise = gru(&network.denoise_gru, &beside([&vad, &noise, features]), device);
    [vad, noise, denoise]
}

/// Returns a second of 16-bit sound at 48 kHz: vowels of a gliding voice, four syllables, in
/// constant noise. (In silence the crate stops its network.)
fn audio() -> Vec<f32> {
    let mut rng = rng(1);
    let mut phase = 0.0;
    let sample = |n: usize| {
        let t = n as f32 / 48_000.0;
        let pitch = 140.0 + 40.0 * (3.0 * t).sin();
        phase += TAU * pitch / 48_000.0;
        let formants = [600.0 + 200.0 * (11.0 * t).sin(), 1500.0 + 500.0 * (7.0 * t).cos(), 2800.0];
        let harmonic = |k: u8| {
            let k = f32::from(k);
            let near = |formant: f32| 1.0 / (1.0 + ((k * pitch - formant) / 90.0).powi(2));
            formants.map(near).iter().sum::<f32>() * (k * phase).sin()
        };
        let syllable = (0.5 * TAU * 4.0 * t).sin().powi(2);
        let voice: f32 = (1..=24).map(harmonic).sum();
        (4000.0 * syllable * voice + rng.random_range(-400.0..400.0)).round()
    };
    (0..FRAMES * FRAME).map(sample).collect()
}

/// Returns `[T, 42]`: the network's features of the sound.
fn features(audio: &[f32]) -> Array2<f32> {
    let mut features = DenoiseFeatures::new();
    let mut rows = Vec::new();
    for frame in audio.chunks(FRAME) {
        features.shift_and_filter_input(frame);
        let silence = features.compute_frame_features();
        assert!(!silence);
        rows.extend(features.features());
    }
    Array2::from_shape_vec((FRAMES, FEATURES), rows).unwrap()
}

/// Returns the crate's folder, from cargo.
fn crate_folder() -> PathBuf {
    let metadata = metadata();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let package = packages.find(|package| package["name"] == "nnnoiseless").unwrap();
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// Returns the largest difference and its index. NaN counts as the largest.
fn worst<D: Dimension>(got: &Array<f32, D>, expected: &Array<f64, D>) -> (f64, D::Pattern) {
    assert_eq!(got.shape(), expected.shape());
    let differences = got.mapv(f64::from) - expected;
    let differences = differences.indexed_iter().map(|(at, difference)| (difference.abs(), at));
    differences.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// The states go up to 13. The crate takes σ and tanh from a table that is off by up to 3e-6.
/// Through the recurrence that becomes 5e-6 in the first GRU's states, and with what each takes
/// over from those before it 1e-5 and 2e-5 in the others'. Reading the others out of the sound adds
/// up to 7e-5 and 4e-5, mostly the rounding of the crate's Fourier transforms. Each tolerance is
/// some four times what was measured in all; another definition of the GRU is off by 1 and more.
#[test]
fn every_state_equals_the_crates() {
    let (network, audio) = (RnnoiseNetwork::rnnoise(), audio());
    let features = features(&audio);
    let expected = [
        ("vad_gru", network.vad_states(&audio), 2e-5),
        ("noise_gru", network.noise_states(&audio), 3e-4),
        ("denoise_gru", network.denoise_states(&audio), 2e-4),
    ];
    let mut wrong = Vec::new();
    for device in devices() {
        let states = our_states(&network, &features, &device);
        for (states, (layer, expected, tolerance)) in states.iter().zip(&expected) {
            let (error, (t, unit)) = worst(states, expected);
            let line = format!("{layer} on {device}: {error:.1e} off at step {t}, unit {unit}");
            println!("{line}");
            if error.is_nan() || error > *tolerance {
                wrong.push(line);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The whole network of RNNoise, end to end. The tolerance is four times the measured difference.
#[test]
fn the_speech_probability_equals_the_crates() {
    let (network, audio) = (RnnoiseNetwork::rnnoise(), audio());
    let features = features(&audio);
    let mut state = DenoiseState::new();
    let frames = audio.chunks(FRAME);
    let expected: Array1<f64> =
        frames.map(|frame| state.process_frame(&mut [0.0; FRAME], frame).into()).collect();
    // The sound is like speech, and like speech with pauses.
    assert!(expected.iter().any(|&p| p < 0.1) && expected.iter().any(|&p| p > 0.9));
    for device in devices() {
        let [vad, ..] = our_states(&network, &features, &device);
        let speech = dense(&network.vad_output, &vad).mapv(sigmoid).remove_axis(Axis(1));
        let (error, t) = worst(&speech, &expected);
        println!("probability of speech on {device}: {error:.1e} off at step {t}");
        assert!(error < 1e-5, "{error:e} off at step {t} on {device}");
    }
}
