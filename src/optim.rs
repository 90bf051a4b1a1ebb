//! Adam over a flat buffer, and gradient clipping, on the host.

use crate::error::{Result, check_shape};

/// Adam (Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1), with PyTorch's defaults and placement
/// of ε: outside the square root.
///
/// It walks a flat buffer such as [`Params::as_mut_slice`](crate::Params::as_mut_slice); elements
/// whose gradient is 0 from the start stay as they are.
///
/// ```
/// use gru_wgpu::Adam;
///
/// let mut x = [1.0_f32];
/// let mut adam = Adam::new(x.len(), 0.1);
/// for _ in 0..100 {
///     let gradient = [2.0 * x[0]]; // of x²
///     adam.step(&mut x, &gradient)?;
/// }
/// assert!(x[0].abs() < 0.05);
/// # Ok::<(), gru_wgpu::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Adam {
    /// α, the size of a step; may be changed between steps.
    pub learning_rate: f32,
    /// β₁, the decay of the first moment.
    pub beta1: f32,
    /// β₂, the decay of the second moment.
    pub beta2: f32,
    /// ε.
    pub epsilon: f32,
    steps: u64,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
}

impl Adam {
    /// For `len` parameters, with β₁ 0.9, β₂ 0.999 and ε 1e-8.
    pub fn new(len: usize, learning_rate: f32) -> Self {
        Self {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            steps: 0,
            first_moment: vec![0.0; len],
            second_moment: vec![0.0; len],
        }
    }

    /// Moves `params` against `gradient`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when either has another length than the optimiser was
    /// made for; nothing has moved then.
    pub fn step(&mut self, params: &mut [f32], gradient: &[f32]) -> Result<()> {
        check_shape("Adam's parameters", &[self.first_moment.len()], &[params.len()])?;
        check_shape("Adam's gradient", &[self.first_moment.len()], &[gradient.len()])?;
        self.steps += 1;
        let steps = self.steps as f64;
        let correction1 = (1.0 - f64::from(self.beta1).powf(steps)) as f32;
        let correction2 = (1.0 - f64::from(self.beta2).powf(steps)).sqrt() as f32;
        let moments = self.first_moment.iter_mut().zip(&mut self.second_moment);
        for ((param, &g), (m, v)) in params.iter_mut().zip(gradient).zip(moments) {
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            let scale = v.sqrt() / correction2 + self.epsilon;
            *param -= self.learning_rate / correction1 * *m / scale;
        }
        Ok(())
    }
}

/// Scales several gradients together so that their joint Euclidean norm is at most `max_norm`
/// (Pascanu et al. 2013, arXiv 1211.5063). Returns the norm before; where it is not finite, nothing
/// is scaled and the caller should stop. A `max_norm` that is not above 0 leaves zeros.
pub fn clip_global_norm(gradients: &mut [&mut [f32]], max_norm: f32) -> f32 {
    let squares = gradients.iter().flat_map(|g| g.iter()).map(|&v| f64::from(v) * f64::from(v));
    let norm = squares.sum::<f64>().sqrt() as f32;
    // NaN counts as 0 too.
    let max_norm = max_norm.max(0.0);
    if norm.is_finite() && norm > max_norm {
        let scale = max_norm / norm;
        gradients.iter_mut().flat_map(|g| g.iter_mut()).for_each(|v| *v *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps by hand: the first is α·sign(g), whatever the gradient's size.
    #[test]
    fn adam_takes_the_steps_of_the_paper() {
        let mut x = [1.0_f32, -2.0];
        let mut adam = Adam::new(2, 0.5);
        adam.step(&mut x, &[1e-3, -40.0]).unwrap();
        approx::assert_abs_diff_eq!(x.as_slice(), [0.5, -1.5].as_slice(), epsilon = 1e-4);
        // m̂ = (0.9·g1 + g2)/1.9 and v̂ ≈ (g1² + g2²)/2 for β₂ near 1.
        adam.step(&mut x, &[-1e-3, -40.0]).unwrap();
        let moved = 0.5 * (0.9 - 1.0) / 1.9;
        approx::assert_abs_diff_eq!(x.as_slice(), [0.5 - moved, -1.0].as_slice(), epsilon = 1e-3);
    }

    #[test]
    fn adam_refuses_another_length_and_moves_nothing() {
        let mut x = [1.0_f32, 2.0];
        let mut adam = Adam::new(2, 0.5);
        let error = adam.step(&mut x, &[1.0]).unwrap_err().to_string();
        assert_eq!(error, "Adam's gradient has shape [1], expected [2]");
        assert!(adam.step(&mut x[..1], &[1.0, 1.0]).is_err());
        assert_eq!(x, [1.0, 2.0]);
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let (mut a, mut b) = ([3.0_f32], [4.0_f32]);
        assert_eq!(clip_global_norm(&mut [&mut a, &mut b], 10.0), 5.0);
        assert_eq!((a, b), ([3.0], [4.0]));
        assert_eq!(clip_global_norm(&mut [&mut a, &mut b], 2.5), 5.0);
        assert_eq!((a, b), ([1.5], [2.0]));
        for nothing in [-1.0, f32::NAN] {
            assert_eq!(clip_global_norm(&mut [&mut [1.0, 2.0][..1]], nothing), 1.0);
            let mut kept = [1.0];
            clip_global_norm(&mut [&mut kept], nothing);
            assert_eq!(kept, [0.0]);
        }
        let mut broken = [f32::NAN, 1.0];
        assert!(clip_global_norm(&mut [&mut broken], 1.0).is_nan());
        assert_eq!(broken[1], 1.0);
    }
}
