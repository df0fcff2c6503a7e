//! Reads Python pickles as data and never runs them: a name outside the caller's list is refused
//! where it stands. `tokenizer` reads nanoGPT's `meta.pkl` so, `interop` PyTorch's files.
//!
//! Opcodes: CPython's `Lib/pickletools.py`, the binary ones of protocols 2 to 5.

use std::collections::HashMap;

#[cfg(test)]
mod tests;

/// A pickle's values. They refer to each other by [`Id`], so that sharing costs nothing and no
/// nesting, however deep, can use up the stack.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// The place of a value in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(u32);

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// In the order of insertion; a key may occur twice, then the last one counts.
    Dict(Vec<(Id, Id)>),
    /// `module.name`.
    Global(String),
    /// A call that the pickle asks for and that nobody makes.
    Call {
        callable: String,
        /// A tuple.
        arguments: Id,
    },
    /// What a pickle leaves to its surroundings to look up.
    Persistent(Id),
}

/// The one name that stands for plain data: calling it makes an empty dictionary.
const ORDERED_DICT: &str = "collections.OrderedDict";
/// Longest name of a global that an error repeats.
const NAMED_BYTES_MAX: usize = 100;

impl Pickle {
    /// Reads `bytes`, in which only the names of `globals` (`module.name`) may occur, besides
    /// `collections.OrderedDict`. Takes memory in proportion to `bytes`, whatever they claim.
    ///
    /// # Errors
    /// What is wrong, where, in a line.
    pub fn parse(bytes: &[u8], globals: &[&str]) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            globals,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        loop {
            let start = machine.at;
            let done = machine
                .step()
                .map_err(|what| format!("pickle, byte {start}: {what}"))?;
            if let Some(root) = done {
                let values = machine.values;
                return Ok(Self { values, root });
            }
        }
    }

    pub fn root(&self) -> Id {
        self.root
    }

    pub fn get(&self, id: Id) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The items of a tuple or a list; none of anything else.
    pub fn items(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => items,
            _ => &[],
        }
    }

    /// The value of a text key; `None` if there is no such key, or `dict` is none.
    pub fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(dict) else {
            return None;
        };
        let is_key = |id: Id| matches!(self.get(id), Value::Text(text) if text == key);
        let found = entries.iter().rev().find(|(found, _)| is_key(*found));
        found.map(|(_, value)| *value)
    }
}

/// The machine that a pickle is a program for, without what could do harm.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    globals: &'a [&'a str],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Carries out one opcode; the result, if that was the end.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.byte()? {
            // PROTO, FRAME
            0x80 => drop(self.byte()?),
            0x95 => drop(self.take(8)?),
            b'.' => return self.pop().map(Some),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            // BININT, BININT1, BININT2, LONG1, BINFLOAT
            b'J' => {
                let int = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            b'K' => {
                let int = self.byte()?;
                self.push(Value::Int(int.into()))?;
            }
            b'M' => {
                let int = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(int.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                let float = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(float))?;
            }
            opcode @ (b'X' | 0x8c | 0x8d) => self.text(opcode)?,
            // MARK, POP, POP_MARK
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            opcode @ (b'}' | b']' | b')' | 0x85..=0x87 | b't' | b'l' | b'd') => {
                self.collection(opcode)?;
            }
            opcode @ (b'a' | b'e' | b's' | b'u') => self.insert(opcode)?,
            opcode @ (b'q' | b'r' | 0x94 | b'h' | b'j') => self.memo(opcode)?,
            opcode @ (b'c' | 0x93) => self.global(opcode)?,
            b'R' => self.call()?,
            // BUILD: attributes beside the entries of a dictionary say nothing that we need.
            b'b' => {
                self.pop()?;
                let to = self.top()?;
                if !matches!(self.values[to.0 as usize], Value::Dict(_)) {
                    return Err("expected attributes of a dictionary only".to_owned());
                }
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            opcode => {
                return Err(format!(
                    "opcode 0x{opcode:02x} is not one that plain data needs"
                ));
            }
        }
        Ok(None)
    }

    /// LONG1: a whole number of up to 8 bytes, two's complement.
    fn long(&mut self) -> Result<(), String> {
        let len = self.byte()?;
        let bytes = self.take(len.into())?;
        if bytes.len() > 8 {
            return Err(format!("expected a number of 8 bytes at most, got {len}"));
        }
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) {
            0xff
        } else {
            0
        };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    /// BINUNICODE, SHORT_BINUNICODE, BINUNICODE8.
    fn text(&mut self, opcode: u8) -> Result<(), String> {
        let len = match opcode {
            b'X' => u32::from_le_bytes(self.array()?).into(),
            0x8c => self.byte()?.into(),
            _ => u64::from_le_bytes(self.array()?),
        };
        let bytes = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8".to_owned())?;
        self.push(Value::Text(text.to_owned()))
    }

    /// EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, TUPLE1 to TUPLE3, TUPLE, LIST, DICT.
    fn collection(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'}' => Value::Dict(Vec::new()),
            b']' => Value::List(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            0x85..=0x87 => {
                let mut items = Vec::new();
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                Value::Tuple(items)
            }
            b't' => Value::Tuple(self.pop_mark()?),
            b'l' => Value::List(self.pop_mark()?),
            _ => Value::Dict(pairs(&self.pop_mark()?)?),
        };
        self.push(value)
    }

    /// APPEND, APPENDS, SETITEM, SETITEMS.
    fn insert(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let to = self.top()?;
        match (&mut self.values[to.0 as usize], opcode) {
            (Value::List(list), b'a' | b'e') => list.extend(items),
            (Value::Dict(dict), b's' | b'u') => dict.extend(pairs(&items)?),
            _ => return Err("items for what is no list and no dictionary".to_owned()),
        }
        Ok(())
    }

    /// BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET.
    fn memo(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?),
            _ => self.memo.len() as u32,
        };
        if matches!(opcode, b'h' | b'j') {
            let Some(id) = self.memo.get(&key) else {
                return Err(format!("nothing was remembered under {key}"));
            };
            self.stack.push(*id);
        } else {
            self.memo.insert(key, self.top()?);
        }
        Ok(())
    }

    /// GLOBAL, STACK_GLOBAL.
    fn global(&mut self, opcode: u8) -> Result<(), String> {
        let [module, name] = if opcode == b'c' {
            [self.line()?, self.line()?]
        } else {
            let mut part = || {
                let id = self.pop()?;
                match &self.values[id.0 as usize] {
                    Value::Text(text) => Ok(text.clone()),
                    _ => Err("expected a name".to_owned()),
                }
            };
            let name = part()?;
            [part()?, name]
        };
        let global = format!("{module}.{name}");
        if global != ORDERED_DICT && !self.globals.contains(&&*global) {
            let mut shown: String = global.chars().take(NAMED_BYTES_MAX).collect();
            if shown.len() < global.len() {
                shown.push('…');
            }
            return Err(format!(
                "it names {shown:?}, which is not data but code, and nothing here runs code"
            ));
        }
        self.push(Value::Global(global))
    }

    /// REDUCE.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let of = |id: Id| &self.values[id.0 as usize];
        let (Value::Global(name), Value::Tuple(items)) = (of(callable), of(arguments)) else {
            return Err("a call of what has no name".to_owned());
        };
        if name == ORDERED_DICT {
            if !items.is_empty() {
                return Err(format!("expected {ORDERED_DICT} without arguments"));
            }
            return self.push(Value::Dict(Vec::new()));
        }
        let callable = name.clone();
        self.push(Value::Call {
            callable,
            arguments,
        })
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        let id = u32::try_from(self.values.len()).map_err(|_| "too many values".to_owned())?;
        self.values.push(value);
        self.stack.push(Id(id));
        Ok(())
    }

    /// Height of the stack above which values may be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Id, String> {
        match self.stack.last() {
            Some(top) if self.stack.len() > self.floor() => Ok(*top),
            _ => Err("expected a value before it".to_owned()),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self
            .marks
            .pop()
            .ok_or_else(|| "expected a mark before it".to_owned())?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let bytes: &'a [u8] = self.bytes;
        let rest = &bytes[self.at..];
        let Some(taken) = rest.get(..len) else {
            return Err(format!(
                "it is cut short: expected {len} more bytes, got {}",
                rest.len()
            ));
        };
        self.at += len;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("as many as were asked for"))
    }

    /// Text up to a line feed.
    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|byte| *byte == b'\n');
        let len = len.ok_or_else(|| "a name without an end".to_owned())?;
        let line = std::str::from_utf8(self.take(len)?)
            .map_err(|_| "a name that is not UTF-8".to_owned())?
            .to_owned();
        self.at += 1;
        Ok(line)
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err("a key without a value".to_owned())
    }
}
