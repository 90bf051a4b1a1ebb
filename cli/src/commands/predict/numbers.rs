//! Predictions that are numbers: the file, and the errors.

use anyhow::Result;

use super::table::PredictedTable;
use crate::data::errors::NumberErrors;
use crate::data::features::NumericLabel;
use crate::data::predictor::SequenceOutputs;
use crate::ui::numbers::format_sig3;
use crate::ui::output::{causes, log, quote};

impl PredictedTable<'_> {
    pub fn numbers_to_csv(
        &self,
        outputs: &[SequenceOutputs],
        numeric: NumericLabel,
    ) -> Result<Vec<u8>> {
        let sequences = outputs.iter().map(|of| (&of.rows[..], &of.outputs));
        self.to_csv(vec!["predicted".to_owned()], sequences, |outputs, at| {
            vec![numeric.shown(outputs[[at, 0]])]
        })
    }

    /// If the file has labels, prints the errors beside those of the mean of the training labels.
    pub fn report_errors(&self, outputs: &[SequenceOutputs], numeric: NumericLabel) -> Result<()> {
        let Some(reader) = &self.labels else { return Ok(()) };
        let mut pairs = Vec::new();
        for (sequence, SequenceOutputs { rows, outputs }) in
            self.table.sequences.iter().zip(outputs)
        {
            let labels = match reader.labels(sequence) {
                Ok(labels) => labels,
                Err(error) => {
                    log(format_args!("the errors are not computed: {}", causes(&error)));
                    return Ok(());
                }
            };
            for (&row, output) in rows.iter().zip(outputs.column(0)) {
                let label = if labels.len() == 1 { labels[0] } else { labels[row] };
                pairs.extend(label.map(|label| (numeric.label(*output), label)));
            }
        }
        if pairs.is_empty() {
            return Ok(());
        }
        let count = pairs.len();
        let mean = NumberErrors::of(pairs.iter().map(|&(_, label)| (numeric.mean, label)));
        let [rmse, mae] = [mean.rmse, mean.mae].map(format_sig3);
        let errors = NumberErrors::of(pairs);
        log(format_args!(
            "RMSE {}, MAE {}: {count} labels in column {}; the mean of the training labels has {rmse} and {mae}",
            format_sig3(errors.rmse),
            format_sig3(errors.mae),
            quote(&self.config.columns.label)
        ));
        Ok(())
    }
}
