//! [`NumberErrors`]: the errors of predicted numbers.

use serde::Serialize;

/// The errors of predicted numbers, in the unit of the labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct NumberErrors {
    /// The root mean squared error.
    pub rmse: f64,
    /// The mean absolute error.
    pub mae: f64,
}

impl NumberErrors {
    /// Computes the errors of pairs of a prediction and a label. Returns zeros if there are none.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let errors: Vec<_> = pairs.into_iter().map(|(got, label)| (got - label).abs()).collect();
        // Divide by the largest error, so that squares neither overflow nor underflow.
        let largest = errors.iter().copied().fold(0.0, f64::max);
        if largest == 0.0 {
            return Self::default();
        }
        let mean = |power: i32| {
            errors.iter().map(|error| (error / largest).powi(power)).sum::<f64>()
                / errors.len() as f64
        };
        Self { rmse: largest * mean(2).sqrt(), mae: largest * mean(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_in_the_unit_of_the_labels() {
        for unit in [1.0, 1e200, 1e-200] {
            let pairs = [(1.0, 0.0), (2.0, 2.0), (3.0, 5.0)].map(|(a, b)| (a * unit, b * unit));
            let NumberErrors { rmse, mae } = NumberErrors::of(pairs);
            assert!((rmse / unit - (5.0f64 / 3.0).sqrt()).abs() < 1e-12, "{rmse}");
            assert!((mae / unit - 1.0).abs() < 1e-12, "{mae}");
        }
        assert_eq!(NumberErrors::of([]), NumberErrors::default());
        assert_eq!(NumberErrors::of([(2.0, 2.0)]), NumberErrors::default());
    }
}
