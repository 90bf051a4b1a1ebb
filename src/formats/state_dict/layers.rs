//! Joins the cells of other frameworks to layers, by the names that Keras gives them.

use std::collections::{HashMap, HashSet};

use super::cells::{CellArrays, Form};

/// The arrays of one layer: of one direction, or of both.
#[derive(Clone, Debug)]
pub(super) struct LayerArrays {
    /// The layer's name with its last separator, or the cells'.
    pub prefix: String,
    /// The arrays of each direction, forward before reverse.
    pub cells: Vec<CellArrays>,
}

/// Joins cells to layers: shortens the prefix of a Keras cell to its layer's, and joins the two
/// directions of `Bidirectional`.
pub(super) fn layers(cells: Vec<CellArrays>) -> Vec<LayerArrays> {
    let mut used = HashMap::<String, usize>::new();
    let shorts: Vec<_> = cells.iter().map(|cell| layer_name(cell).to_owned()).collect();
    for (cell, short) in cells.iter().zip(&shorts) {
        *used.entry(short.clone()).or_default() += 1;
        if *short != cell.prefix {
            *used.entry(cell.prefix.clone()).or_default() += 1;
        }
    }
    let layer = |(cell, short): (CellArrays, String)| {
        let prefix = if used[&short] == 1 { short } else { cell.prefix.clone() };
        LayerArrays { prefix, cells: vec![cell] }
    };
    let layers: Vec<_> = cells.into_iter().zip(shorts).map(layer).collect();
    join_directions(layers)
}

/// Returns the prefix of a Keras layer, without the name that Keras gives to its cell.
pub(super) fn layer_name(cell: &CellArrays) -> &str {
    let name = cell.prefix.strip_suffix(['/', '.']).unwrap_or(&cell.prefix);
    let start = name.rfind(['/', '.']).map_or(0, |at| at + 1);
    let is_cell = name[start..].strip_prefix("gru_cell").is_some_and(|number| {
        let digits = number.strip_prefix('_').unwrap_or(number);
        digits.bytes().all(|c| c.is_ascii_digit())
    });
    if cell.form == Form::Keras && is_cell { &name[..start] } else { &cell.prefix }
}

/// Joins the layers `…/forward_NAME/` and `…/backward_NAME/` of Keras, if there are no others of
/// such names beside them.
fn join_directions(layers: Vec<LayerArrays>) -> Vec<LayerArrays> {
    let split = |layer: &LayerArrays| {
        let name = layer.prefix.strip_suffix(['/', '.'])?;
        let start = name.rfind(['/', '.']).map_or(0, |at| at + 1);
        let (parent, name) = (&layer.prefix[..start], &name[start..]);
        let is_keras = layer.cells[0].form == Form::Keras;
        let (way, rest) = match name.strip_prefix("forward_") {
            Some(rest) => (0, rest),
            None => (1, name.strip_prefix("backward_")?),
        };
        is_keras.then(|| (parent.to_owned(), way, rest.to_owned()))
    };
    let mut pairs = HashMap::<String, Vec<(usize, String)>>::new();
    for (parent, way, rest) in layers.iter().filter_map(split) {
        pairs.entry(parent).or_default().push((way, rest));
    }
    let taken: HashSet<_> = layers.iter().map(|layer| layer.prefix.clone()).collect();
    pairs.retain(|parent, found| {
        found.sort();
        let is_pair = matches!(&found[..], [(0, one), (1, other)] if one == other);
        is_pair && !taken.contains(parent)
    });
    let mut joined: Vec<LayerArrays> = Vec::new();
    let mut reverse = HashMap::new();
    for layer in layers {
        match split(&layer).filter(|(parent, ..)| pairs.contains_key(parent)) {
            None => joined.push(layer),
            Some((parent, 0, _)) => joined.push(LayerArrays { prefix: parent, ..layer }),
            Some((parent, ..)) => drop(reverse.insert(parent, layer.cells)),
        }
    }
    for layer in &mut joined {
        layer.cells.extend(reverse.remove(&layer.prefix).into_iter().flatten());
    }
    joined
}
