//! Basic blocks of a kernel's machine code, and the one that multiplies most.

use std::collections::BTreeMap;

use serde::Serialize;

/// What an instruction does, as far as it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Multiplies and adds.
    MultiplyAdd,
    /// Accesses memory, or another thread's registers; its name.
    Memory(String),
    /// Anything else.
    Other,
}

/// Instructions without a branch between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub name: String,
    pub instructions: Vec<Instruction>,
}

impl Block {
    /// Makes a block without instructions.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), instructions: vec![] }
    }

    fn multiply_adds(&self) -> usize {
        self.instructions.iter().filter(|&i| *i == Instruction::MultiplyAdd).count()
    }
}

/// The block of a kernel that has the most multiply-adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HotBlock {
    pub name: String,
    pub instructions: usize,
    pub multiply_adds: usize,
    /// How often each memory instruction occurs.
    pub memory: BTreeMap<String, usize>,
}

impl HotBlock {
    /// Finds the block with the most multiply-adds, the first of several. `None` if no block
    /// has any.
    pub fn of(blocks: &[Block]) -> Option<Self> {
        let most = blocks.iter().rev().max_by_key(|block| block.multiply_adds())?;
        let multiply_adds = most.multiply_adds();
        let mut memory = BTreeMap::new();
        for instruction in &most.instructions {
            if let Instruction::Memory(name) = instruction {
                *memory.entry(name.clone()).or_default() += 1;
            }
        }
        let (name, instructions) = (most.name.clone(), most.instructions.len());
        (multiply_adds > 0).then_some(Self { name, instructions, multiply_adds, memory })
    }

    /// Returns the multiply-adds per 100 instructions.
    pub fn percent(&self) -> f64 {
        100.0 * self.multiply_adds as f64 / self.instructions as f64
    }

    /// Describes the block: its length, and its most frequent memory instructions.
    pub fn describe(&self) -> String {
        let mut memory: Vec<_> = self.memory.iter().collect();
        memory.sort_by_key(|&(_, &count)| std::cmp::Reverse(count));
        let memory = memory.iter().take(4).map(|(name, count)| format!(", {count} {name}"));
        format!("{} instructions{}", self.instructions, memory.collect::<String>())
    }
}
