//! A reader of pickles that builds plain values and tensors, and runs nothing.
//!
//! A pickle is a program for a stack machine. It can name any Python function and call it. This
//! reader knows the few functions by which PyTorch rebuilds tensors. The result of any other call
//! is an [`Node::Items`] object: it keeps what the pickle later stores in it, because a pickled
//! module keeps its parameters there.
//!
//! Values are nodes of 12 bytes with 32-bit indices, and items are linked in chains, because an
//! instruction of one byte makes a value. So the values take a bounded multiple of the pickle's
//! length. Nothing recurses: a pickle may nest to any depth and refer to itself.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Seek};

use crate::error::{Error, Result, quote};
use crate::formats::files::ByteStream;

/// The number that an old file of torch.save starts with, as little-endian bytes.
const MAGIC: [u8; 10] = [0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];
/// The same, as protocol 0 writes it.
const MAGIC_TEXT: &[u8] = b"119547037146038801333356L";

/// The longest text that is kept. Longer texts are no names of tensors.
const MAX_TEXT: u64 = 4096;
/// The longest name of a tensor.
const MAX_NAME: usize = 4096;
/// The most axes of a tensor.
const MAX_AXES: usize = 64;

/// A value's index.
pub(super) type Id = u32;

/// No cell, or a cell without a key.
const NONE: u32 = u32::MAX;
/// The key of an object's state.
const STATE: u32 = u32::MAX - 1;

/// A value. Whatever has no use for a state dict, such as a float, is opaque.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    None,
    Opaque,
    Bool(bool),
    /// The low and the high half of an `i64`.
    Int([u32; 2]),
    /// A range of the texts.
    Text(u32, u32),
    /// The magic number of an old file.
    Magic,
    /// A list, tuple, dictionary or object: the first and the last cell.
    Items(u32, u32),
    /// A class or function: its module and name.
    Global(Id, Id),
    /// What a persistent id stands for: a storage, described by a tuple.
    Persistent(Id),
    /// A tensor, described by the arguments of the function that rebuilds it.
    Tensor(Id),
}

impl Node {
    fn int(number: i64) -> Self {
        Self::Int([number as u32, (number >> 32) as u32])
    }
}

/// An item of a list, tuple, dictionary or object.
#[derive(Clone, Copy, Debug)]
struct Cell {
    key: u32,
    value: Id,
    next: u32,
}

/// A value read from a pickle, with all that it refers to.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    cells: Vec<Cell>,
    text: Vec<u8>,
    root: Id,
    /// The pickle's length in bytes.
    len: u64,
}

/// A storage, as a pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// PyTorch's class, such as `FloatStorage`.
    pub class: &'a str,
    pub key: &'a str,
    /// The number of elements.
    pub len: u64,
    /// The first element of the view, for a view of another storage.
    pub first: u64,
}

/// A tensor, as a pickle describes it.
#[derive(Debug)]
pub(super) struct Tensor<'a> {
    pub storage: Storage<'a>,
    /// The element type, where it is not that of the storage, such as `float32`.
    pub dtype: Option<&'a str>,
    /// The first element in the storage.
    pub first: u64,
    pub shape: Vec<usize>,
    /// The distance of neighbours along each axis, in elements.
    pub strides: Vec<u64>,
}

/// Reads the next pickle of a stream.
pub(super) fn read<S: Read + Seek>(stream: &mut ByteStream<'_, S>) -> Result<Pickle> {
    let len = stream.left();
    let mut machine = Machine {
        stream,
        nodes: vec![Node::None, Node::Opaque],
        cells: Vec::new(),
        text: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copies: len / 4,
    };
    let root = machine.run()?;
    let Machine { nodes, cells, text, stream, .. } = machine;
    Ok(Pickle { nodes, cells, text, root, len: len - stream.left() })
}

/// The stack machine.
struct Machine<'a, 'b, S> {
    stream: &'a mut ByteStream<'b, S>,
    nodes: Vec<Node>,
    cells: Vec<Cell>,
    text: Vec<u8>,
    stack: Vec<Id>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// How many items may still be copied from a value that the pickle can name again.
    copies: u64,
}

/// The nodes that every pickle has.
const NONE_NODE: Id = 0;
const OPAQUE: Id = 1;

impl<S: Read + Seek> Machine<'_, '_, S> {
    /// Runs the pickle and returns its value.
    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = self.stream.array()?;
            match opcode {
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    // Python pops the mark if there is nothing above it.
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.stack.push(NONE_NODE),
                0x88 => self.push(Node::Bool(true))?,
                0x89 => self.push(Node::Bool(false))?,
                b'I' | b'L' => self.decimal()?,
                b'J' => {
                    let number = i32::from_le_bytes(self.stream.array()?);
                    self.push_int(number.into())?;
                }
                b'K' => {
                    let [number] = self.stream.array()?;
                    self.push_int(number.into())?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.stream.array()?);
                    self.push_int(number.into())?;
                }
                0x8A => {
                    let [len] = self.stream.array()?;
                    self.long(len.into())?;
                }
                0x8B => {
                    let len = u32::from_le_bytes(self.stream.array()?);
                    self.long(len.into())?;
                }
                b'F' | b'P' => {
                    self.line()?;
                    self.stack.push(OPAQUE);
                }
                b'G' => self.opaque(8)?,
                b'S' => {
                    let (start, len) = self.line()?;
                    let line = &self.text[start..start + len];
                    let is_quoted = len >= 2 && matches!(line[0], b'\'' | b'"');
                    let has_escape = line.contains(&b'\\');
                    match is_quoted && line[0] == line[len - 1] && !has_escape {
                        true => self.push(Node::Text(start as u32 + 1, len as u32 - 2))?,
                        false => self.stack.push(OPAQUE),
                    }
                }
                b'V' => {
                    let (start, len) = self.line()?;
                    match self.text[start..start + len].contains(&b'\\') {
                        true => self.stack.push(OPAQUE),
                        false => self.push(Node::Text(start as u32, len as u32))?,
                    }
                }
                // Bytes too: the strings of Python 2.
                b'U' | b'C' | 0x8C => {
                    let [len] = self.stream.array()?;
                    self.text(len.into())?;
                }
                b'T' | b'X' | b'B' => {
                    let len = u32::from_le_bytes(self.stream.array()?);
                    self.text(len.into())?;
                }
                0x8D | 0x8E => {
                    let len = u64::from_le_bytes(self.stream.array()?);
                    self.text(len)?;
                }
                0x96 => {
                    let len = u64::from_le_bytes(self.stream.array()?);
                    self.opaque(len)?;
                }
                0x97 => self.stack.push(OPAQUE),
                0x98 => {}
                b')' | b']' | b'}' | 0x8F => self.push(Node::Items(NONE, NONE))?,
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                b't' | b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(items)?;
                }
                b'd' => {
                    let start = self.mark()?;
                    let dict = self.add(Node::Items(NONE, NONE))?;
                    self.set_items(dict, start)?;
                    self.stack.push(dict);
                }
                b'a' => {
                    let value = self.pop()?;
                    let list = self.top()?;
                    self.append(list, NONE, value)?;
                }
                b'e' | 0x90 => {
                    let start = self.mark()?;
                    let list = self.below(start)?;
                    for at in start..self.stack.len() {
                        self.append(list, NONE, self.stack[at])?;
                    }
                    self.stack.truncate(start);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    let dict = self.top()?;
                    self.append(dict, key, value)?;
                }
                b'u' => {
                    let start = self.mark()?;
                    let dict = self.below(start)?;
                    self.set_items(dict, start)?;
                }
                b'g' | b'h' | b'j' => {
                    let at = self.memo_index(opcode)?;
                    let value = self.memo.get(&at).copied().ok_or_else(|| {
                        Error::format(format!(
                            "its pickle uses entry {at} of the memo before it is set"
                        ))
                    })?;
                    self.stack.push(value);
                }
                b'p' | b'q' | b'r' => {
                    let at = self.memo_index(opcode)?;
                    let value = self.top()?;
                    self.memo.insert(at, value);
                }
                0x94 => {
                    let value = self.top()?;
                    self.memo.insert(self.memo.len() as u32, value);
                }
                b'c' => {
                    let module = self.line_node()?;
                    let name = self.line_node()?;
                    self.push(Node::Global(module, name))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    self.push(Node::Global(module, name))?;
                }
                0x82 => self.opaque(1)?,
                0x83 => self.opaque(2)?,
                0x84 => self.opaque(4)?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id))?;
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, arguments)?;
                }
                0x92 => {
                    self.pop()?;
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, arguments)?;
                }
                b'i' => {
                    self.line()?;
                    self.line()?;
                    self.pop_mark()?;
                    self.push(Node::Items(NONE, NONE))?;
                }
                b'o' => {
                    self.pop_mark()?;
                    self.push(Node::Items(NONE, NONE))?;
                }
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    self.append(object, STATE, state)?;
                }
                0x80 => {
                    let [version] = self.stream.array()?;
                    if version > 5 {
                        return Err(Error::format(format!(
                            "its pickle has protocol {version}; expected at most 5"
                        )));
                    }
                }
                0x95 => drop(self.stream.array::<8>()?),
                other => {
                    return Err(Error::format(format!(
                        "its pickle has the unknown instruction {other:#04x}; the file is damaged"
                    )));
                }
            }
        }
    }

    /// Adds a value.
    fn add(&mut self, node: Node) -> Result<Id> {
        add_to(&mut self.nodes, node)
    }

    fn push(&mut self, node: Node) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_int(&mut self, number: i64) -> Result<()> {
        self.push(Node::int(number))
    }

    /// Returns the lowest index above the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(empty()),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Removes the last mark and returns the height of the stack there.
    fn mark(&mut self) -> Result<usize> {
        self.marks.pop().ok_or_else(empty)
    }

    /// Returns the value below the mark that was at `start`.
    fn below(&self, start: usize) -> Result<Id> {
        match start.checked_sub(1) {
            Some(at) if start > self.floor() => Ok(self.stack[at]),
            _ => Err(empty()),
        }
    }

    /// Removes everything above the last mark, and the mark. Returns the chain of the values.
    fn pop_mark(&mut self) -> Result<Node> {
        let start = self.mark()?;
        self.chain(start)
    }

    /// Replaces the values above `start` by a chain of them.
    fn chain(&mut self, start: usize) -> Result<Node> {
        let first = self.cells.len();
        for at in start..self.stack.len() {
            let next = self.cells.len() as u32 + 1;
            add_to(&mut self.cells, Cell { key: NONE, value: self.stack[at], next })?;
        }
        let count = self.stack.len() - start;
        self.stack.truncate(start);
        if count == 0 {
            return Ok(Node::Items(NONE, NONE));
        }
        let last = first + count - 1;
        self.cells[last].next = NONE;
        Ok(Node::Items(first as u32, last as u32))
    }

    /// Makes a tuple of the topmost values.
    fn tuple(&mut self, count: usize) -> Result<()> {
        let start = self.stack.len().checked_sub(count).filter(|&start| start >= self.floor());
        let items = self.chain(start.ok_or_else(empty)?)?;
        self.push(items)
    }

    /// Stores the pairs of key and value from `start` on in `dict`, and removes them.
    fn set_items(&mut self, dict: Id, start: usize) -> Result<()> {
        if !(self.stack.len() - start).is_multiple_of(2) {
            return Err(Error::format("its pickle has a key without a value".to_owned()));
        }
        for at in (start..self.stack.len()).step_by(2) {
            self.append(dict, self.stack[at], self.stack[at + 1])?;
        }
        self.stack.truncate(start);
        Ok(())
    }

    /// Adds an item to a list, dictionary or object. Other values have no items.
    fn append(&mut self, to: Id, key: u32, value: Id) -> Result<()> {
        let Node::Items(first, last) = self.nodes[to as usize] else { return Ok(()) };
        let cell = add_to(&mut self.cells, Cell { key, value, next: NONE })?;
        let first = match first {
            NONE => cell,
            first => {
                self.cells[last as usize].next = cell;
                first
            }
        };
        self.nodes[to as usize] = Node::Items(first, cell);
        Ok(())
    }

    /// Pushes the result of a call.
    fn call(&mut self, mut callable: Id, mut arguments: Id) -> Result<()> {
        // A call may be an argument of `_rebuild_from_type_v2`, which adds attributes to a tensor.
        for _ in 0..8 {
            let values = Values { nodes: &self.nodes, cells: &self.cells, text: &self.text };
            let Some(function) = values.global(callable) else { break };
            let given: [Id; 2] = values.first_items(arguments);
            match function {
                (
                    "torch._utils",
                    "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3",
                ) => {
                    return self.push(Node::Tensor(arguments));
                }
                (
                    "torch._utils",
                    "_rebuild_parameter"
                    | "_rebuild_parameter_with_state"
                    | "_rebuild_device_tensor_from_cpu_tensor",
                ) => {
                    self.stack.push(given[0]);
                    return Ok(());
                }
                ("torch._tensor", "_rebuild_from_type_v2") => {
                    let inner = values.items(arguments).nth(2).map(|cell| cell.value);
                    (callable, arguments) = (given[0], inner.unwrap_or(OPAQUE));
                }
                ("torch", "Size") => {
                    self.stack.push(given[0]);
                    return Ok(());
                }
                // Python 2 gives the items as a list of pairs.
                ("collections", "OrderedDict") => {
                    let pairs: Vec<[Id; 2]> = values
                        .items(given[0])
                        .take(self.copies as usize + 1)
                        .map(|pair| values.first_items(pair.value))
                        .collect();
                    self.copies = spend(self.copies, pairs.len() as u64)?;
                    let dict = self.add(Node::Items(NONE, NONE))?;
                    for [key, value] in pairs {
                        self.append(dict, key, value)?;
                    }
                    self.stack.push(dict);
                    return Ok(());
                }
                _ => break,
            }
        }
        self.push(Node::Items(NONE, NONE))
    }

    /// Reads a line into the texts and returns its range. The end of a long line is dropped.
    fn line(&mut self) -> Result<(usize, usize)> {
        let start = self.text.len();
        loop {
            let [byte] = self.stream.array()?;
            if byte == b'\n' {
                break;
            }
            if self.text.len() - start <= MAX_TEXT as usize {
                self.text.push(byte);
            }
        }
        let end = if self.text.ends_with(b"\r") && self.text.len() > start { 1 } else { 0 };
        self.check_text()?;
        Ok((start, self.text.len() - start - end))
    }

    fn line_node(&mut self) -> Result<Id> {
        let (start, len) = self.line()?;
        self.add(Node::Text(start as u32, len as u32))
    }

    /// Reads a text or bytes. Skips what is too long for a name.
    fn text(&mut self, len: u64) -> Result<()> {
        if len > MAX_TEXT {
            return self.opaque(len);
        }
        let start = self.text.len();
        self.stream.append(len as usize, &mut self.text)?;
        self.check_text()?;
        self.push(Node::Text(start as u32, len as u32))
    }

    fn check_text(&self) -> Result<()> {
        if u32::try_from(self.text.len()).is_err() { Err(too_large()) } else { Ok(()) }
    }

    /// Skips a value that has no use.
    fn opaque(&mut self, len: u64) -> Result<()> {
        self.stream.skip(len)?;
        self.stack.push(OPAQUE);
        Ok(())
    }

    /// Reads a decimal number, or a truth value of protocol 1.
    fn decimal(&mut self) -> Result<()> {
        let (start, len) = self.line()?;
        let line = &self.text[start..start + len];
        let number = std::str::from_utf8(line).ok().map(|line| line.trim_end_matches('L'));
        let node = match (line, number.and_then(|number| number.parse::<i64>().ok())) {
            (b"00", _) => Node::Bool(false),
            (b"01", _) => Node::Bool(true),
            (MAGIC_TEXT, _) => Node::Magic,
            (_, Some(number)) => Node::int(number),
            _ => Node::Opaque,
        };
        self.text.truncate(start);
        self.push(node)
    }

    /// Reads a little-endian number of any length.
    fn long(&mut self, len: u64) -> Result<()> {
        if len > MAGIC.len() as u64 {
            return self.opaque(len);
        }
        let start = self.text.len();
        self.stream.append(len as usize, &mut self.text)?;
        let bytes = &self.text[start..];
        let is_negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut number = [if is_negative { 0xFF } else { 0 }; 8];
        let node = if bytes == MAGIC {
            Node::Magic
        } else if bytes.len() > 8 {
            Node::Opaque
        } else {
            number[..bytes.len()].copy_from_slice(bytes);
            Node::int(i64::from_le_bytes(number))
        };
        self.text.truncate(start);
        self.push(node)
    }

    fn memo_index(&mut self, opcode: u8) -> Result<u32> {
        match opcode {
            b'h' | b'q' => Ok(self.stream.array::<1>()?[0].into()),
            b'j' | b'r' => Ok(u32::from_le_bytes(self.stream.array()?)),
            _ => {
                let (start, len) = self.line()?;
                let number = std::str::from_utf8(&self.text[start..start + len]).ok();
                let number = number.and_then(|number| number.parse().ok());
                self.text.truncate(start);
                number.ok_or_else(|| {
                    Error::format("its pickle has an invalid index of the memo".to_owned())
                })
            }
        }
    }
}

fn add_to<T>(to: &mut Vec<T>, item: T) -> Result<u32> {
    let id = u32::try_from(to.len()).ok().filter(|&id| id < STATE).ok_or_else(too_large)?;
    to.push(item);
    Ok(id)
}

fn too_large() -> Error {
    Error::format("its pickle has more than 4 billion values".to_owned())
}

fn empty() -> Error {
    Error::format("its pickle takes a value from an empty stack; the file is damaged".to_owned())
}

/// Values, while a pickle is read or after it.
#[derive(Clone, Copy)]
struct Values<'a> {
    nodes: &'a [Node],
    cells: &'a [Cell],
    text: &'a [u8],
}

impl<'a> Values<'a> {
    fn node(self, id: Id) -> Node {
        self.nodes[id as usize]
    }

    /// Returns the cells of a list, tuple, dictionary or object; none for another value.
    fn items(self, id: Id) -> impl Iterator<Item = Cell> + 'a {
        let mut at = match self.node(id) {
            Node::Items(first, _) => first,
            _ => NONE,
        };
        std::iter::from_fn(move || {
            let cell = *self.cells.get(at as usize)?;
            at = cell.next;
            Some(cell)
        })
    }

    /// Returns the first values of a list or tuple, with opaque ones for those that it lacks.
    fn first_items<const N: usize>(self, id: Id) -> [Id; N] {
        let mut first = [OPAQUE; N];
        first.iter_mut().zip(self.items(id)).for_each(|(to, cell)| *to = cell.value);
        first
    }

    fn text(self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Text(start, len) => {
                let (start, len) = (start as usize, len as usize);
                std::str::from_utf8(&self.text[start..start + len]).ok()
            }
            _ => None,
        }
    }

    fn int(self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int([low, high]) => Some((u64::from(high) << 32 | u64::from(low)) as i64),
            _ => None,
        }
    }

    fn size(self, id: Id) -> Option<u64> {
        self.int(id).and_then(|number| number.try_into().ok())
    }

    /// Returns the module and name of a class or function.
    fn global(self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.node(id) {
            Node::Global(module, name) => Some((self.text(module)?, self.text(name)?)),
            _ => None,
        }
    }

    fn storage(self, id: Id) -> Option<Storage<'a>> {
        let Node::Persistent(description) = self.node(id) else { return None };
        let [kind, class, key, _, len, view] = self.first_items(description);
        if self.text(kind) != Some("storage") {
            return None;
        }
        let (module, class) = self.global(class)?;
        // A view of another storage: its key, first element and length.
        let [_, first, _] = self.first_items(view);
        let first = if matches!(self.node(view), Node::Items(..)) { self.size(first)? } else { 0 };
        let is_known = module == "torch" || module.starts_with("torch.");
        let (key, len) = (self.text(key)?, self.size(len)?);
        is_known.then_some(Storage { class, key, len, first })
    }

    /// Returns the tensor that is described by arguments, or what is wrong with them.
    fn tensor(self, arguments: Id) -> Result<Tensor<'a>, &'static str> {
        // _rebuild_tensor_v3 has a type between the hooks and the metadata.
        let [storage, first, shape, strides, _, _, dtype, metadata] = self.first_items(arguments);
        let storage = self.storage(storage).ok_or("has no storage of PyTorch")?;
        let first = self.size(first).ok_or("has no valid offset in its storage")?;
        let sizes = |id| -> Option<Vec<u64>> {
            if !matches!(self.node(id), Node::Items(..)) {
                return None;
            }
            let mut sizes = Vec::new();
            for cell in self.items(id) {
                if sizes.len() == MAX_AXES {
                    return None;
                }
                sizes.push(self.size(cell.value)?);
            }
            Some(sizes)
        };
        let shape = sizes(shape).ok_or("has no valid shape")?;
        let strides = sizes(strides).ok_or("has no valid strides")?;
        if shape.len() != strides.len() {
            return Err("has another number of strides than of axes");
        }
        let shape = shape.iter().map(|&size| usize::try_from(size));
        let shape = shape.collect::<Result<_, _>>().map_err(|_| "has no valid shape")?;
        let (dtype, metadata) = match self.global(dtype) {
            Some(("torch", dtype)) => (Some(dtype), metadata),
            _ => (None, dtype),
        };
        // A tensor may be stored as the negative of its numbers.
        if self.items(metadata).next().is_some() {
            return Err(
                "is a view with the bit `neg` or `conj`, which this reader does not resolve",
            );
        }
        Ok(Tensor { storage, dtype, first, shape, strides })
    }
}

impl Pickle {
    fn values(&self) -> Values<'_> {
        Values { nodes: &self.nodes, cells: &self.cells, text: &self.text }
    }

    /// Returns true if the value is the number that an old file of torch.save starts with.
    pub fn is_magic(&self) -> bool {
        matches!(self.values().node(self.root), Node::Magic)
    }

    /// Returns the texts of a list of texts.
    pub fn texts(&self) -> Option<Vec<&str>> {
        let values = self.values();
        values.items(self.root).map(|cell| values.text(cell.value)).collect()
    }

    /// Returns the entry of a dictionary under a key, if it is a truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        let values = self.values();
        let mut items = values.items(self.root);
        let entry = items.find(|cell| cell.key < STATE && values.text(cell.key) == Some(key))?;
        match values.node(entry.value) {
            Node::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// Returns every storage by its key.
    pub fn storages(&self) -> Result<BTreeMap<&str, Storage<'_>>> {
        let values = self.values();
        let mut storages = BTreeMap::new();
        for id in 0..self.nodes.len() as u32 {
            let Some(storage) = values.storage(id) else { continue };
            let storage = Storage { first: 0, ..storage };
            if let Some(other) = storages.insert(storage.key, storage.clone()) {
                if other != storage {
                    return Err(Error::format(format!(
                        "its storage {} is described in two ways",
                        quote(other.key)
                    )));
                }
            }
        }
        Ok(storages)
    }

    /// Returns the tensor with this id.
    pub fn tensor(&self, name: &str, arguments: Id) -> Result<Tensor<'_>> {
        let wrong = |reason| Error::format(format!("{} {reason}", quote(name)));
        self.values().tensor(arguments).map_err(wrong)
    }

    /// Returns the arguments of every tensor by its name: the keys that lead to it, joined by dots.
    /// Positions are the keys of lists and tuples. The parts of a pickled module are left out, so
    /// that its names are those of its state dict. A name that leads to several tensors appears
    /// several times.
    pub fn named_tensors(&self) -> Result<Vec<(Box<str>, Id)>> {
        const PARTS: [&str; 3] = ["_modules", "_parameters", "_buffers"];
        /// A list, tuple, dictionary or object whose items are visited.
        struct Frame {
            node: Id,
            /// The next cell, and its position.
            next: u32,
            position: u32,
            /// The length of the name of `node`.
            name_len: u32,
        }
        let values = self.values();
        let mut found: Vec<(Box<str>, Id)> = Vec::new();
        let mut name = String::new();
        // A value may be reached in many ways, but not through itself.
        let mut is_open = vec![false; self.nodes.len()];
        let mut frames: Vec<Frame> = Vec::new();
        // Values that are shared again and again could lead to more names than the file has bytes.
        let (mut work, mut memory) = (32 * self.len + (1 << 20), 16 * self.len + (1 << 16));
        let mut enter = self.root;
        loop {
            match self.nodes[enter as usize] {
                Node::Items(first, _) if !is_open[enter as usize] => {
                    is_open[enter as usize] = true;
                    let name_len = name.len() as u32;
                    frames.push(Frame { node: enter, next: first, position: 0, name_len });
                }
                Node::Tensor(arguments) => {
                    memory = spend(memory, 128 + name.len() as u64)?;
                    found.push((name.as_str().into(), arguments));
                }
                _ => {}
            }
            // The next item to enter.
            loop {
                let Some(frame) = frames.last_mut() else { return Ok(found) };
                name.truncate(frame.name_len as usize);
                let Some(cell) = self.cells.get(frame.next as usize) else {
                    is_open[frame.node as usize] = false;
                    frames.pop();
                    continue;
                };
                let position = frame.position;
                (frame.next, frame.position) = (cell.next, position + 1);
                let start = name.len();
                let is_first = start == 0;
                match cell.key {
                    STATE => {}
                    NONE => add_part(&mut name, is_first, format_args!("{position}")),
                    key => match (values.text(key), values.int(key)) {
                        (Some(text), _) if PARTS.contains(&text) => {}
                        (Some(text), _) => add_part(&mut name, is_first, format_args!("{text}")),
                        (_, Some(int)) => add_part(&mut name, is_first, format_args!("{int}")),
                        _ => add_part(&mut name, is_first, format_args!("{position}")),
                    },
                }
                work = spend(work, 8 + (name.len() - start) as u64)?;
                // No GRU has a longer name.
                if name.len() <= MAX_NAME {
                    enter = cell.value;
                    break;
                }
            }
        }
    }
}

fn add_part(name: &mut String, is_first: bool, part: std::fmt::Arguments<'_>) {
    use std::fmt::Write;
    let dot = if is_first { "" } else { "." };
    write!(name, "{dot}{part}").expect("a String accepts every write");
}

fn spend(left: u64, cost: u64) -> Result<u64> {
    left.checked_sub(cost).ok_or_else(|| {
        let reason = "its objects share their contents in too many ways to list its tensors; in \
                      Python: torch.save(model.state_dict(), \"model.pt\")";
        Error::format(reason.to_owned())
    })
}
