//! [`PredictedTable`]: what the predictions of classes and of numbers share.

use anyhow::Result;

use crate::commands::train::config::TrainConfig;
use crate::data::labels::LabelReader;
use crate::data::table::SequenceTable;

/// A run's model and the file that it predicts.
pub struct PredictedTable<'a> {
    pub config: &'a TrainConfig,
    pub table: &'a SequenceTable,
    /// `None` if the file has no label column.
    pub labels: Option<LabelReader<'a>>,
}

impl PredictedTable<'_> {
    /// Writes a row for each output, with the columns `header` after the sequence's name and, if a
    /// sequence has several outputs, the step. `cells` returns these columns of output `at` of a
    /// sequence.
    pub fn to_csv<'s, T>(
        &self,
        header: Vec<String>,
        sequences: impl Iterator<Item = (&'s [usize], T)>,
        cells: impl Fn(&T, usize) -> Vec<String>,
    ) -> Result<Vec<u8>> {
        let has_steps = self.config.task_of_sequences().has_several();
        let steps = if has_steps { vec!["step".to_owned()] } else { vec![] };
        let mut header = [steps, header].concat();
        if let Some(sequence) = self.table.sequence {
            // The column's own name in the file may equal one of the others.
            let name = &self.table.csv.names[sequence];
            let name = if header.contains(name) { "sequence" } else { name };
            header.insert(0, name.to_owned());
        }
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(&header)?;
        for (sequence, (rows, predictions)) in self.table.sequences.iter().zip(sequences) {
            for (at, row) in rows.iter().enumerate() {
                let name = self.table.sequence.map(|_| self.table.name(sequence).to_owned());
                let step = has_steps.then(|| (row + 1).to_string());
                let cells = cells(&predictions, at);
                csv.write_record(name.into_iter().chain(step).chain(cells))?;
            }
        }
        Ok(csv.into_inner().map_err(|error| error.into_error())?)
    }
}
