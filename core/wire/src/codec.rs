//! The encoder, the decoder, and the macros that spell a struct's fields out.

use bytes::{BufMut, Bytes, BytesMut};

/// Why bytes are not the message they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a value.
    #[error("the message ends early")]
    Short,
    /// A tag that no version of this message has.
    #[error("unknown tag {tag} in {what}")]
    Tag {
        /// The enum.
        what: &'static str,
        /// The tag read.
        tag: u8,
    },
    /// A value outside its range or not UTF-8.
    #[error("bad value in {0}")]
    Value(&'static str),
    /// Bytes are left over after the message.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Grows an encoded message.
#[derive(Default)]
pub struct Encoder {
    buf: BytesMut,
}

impl Encoder {
    /// Starts an empty message.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buf: BytesMut::with_capacity(128),
        }
    }

    /// Appends raw bytes without a length.
    pub fn put_raw(&mut self, bytes: &[u8]) {
        self.buf.put_slice(bytes);
    }

    /// Appends a length and the bytes.
    pub fn put_bytes(&mut self, bytes: &[u8]) {
        self.put_len(bytes.len());
        self.buf.put_slice(bytes);
    }

    /// Appends the length of a list that follows.
    ///
    /// # Panics
    /// If a list has more than `u32::MAX` items: every list of ours has a far smaller limit.
    pub fn put_len(&mut self, len: usize) {
        self.buf
            .put_u32(u32::try_from(len).expect("message lists are bounded"));
    }

    /// Returns the finished message.
    #[must_use]
    pub fn finish(self) -> Bytes {
        self.buf.freeze()
    }
}

/// Takes an encoded message apart.
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes `len` raw bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes a length-prefixed byte string.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.take_len()?;
        self.take(len)
    }

    /// Takes the length of a list; never more than the bytes that are left.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take_len(&mut self) -> Result<usize, DecodeError> {
        let len = usize::try_from(u32::get(self)?).map_err(|_| DecodeError::Short)?;
        if len > self.rest.len() {
            Err(DecodeError::Short)
        } else {
            Ok(len)
        }
    }

    /// Takes everything that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Ends decoding.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.rest.len()))
        }
    }
}

/// A value with a form on the wire.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Encoder);
    /// Takes a value.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no such value.
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// Encodes the value alone.
    fn to_wire(&self) -> Bytes {
        let mut out = Encoder::new();
        self.put(&mut out);
        out.finish()
    }

    /// Decodes a whole message.
    ///
    /// # Errors
    /// [`DecodeError`], also when bytes are left over.
    fn from_wire(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Decoder::new(bytes);
        let value = Self::get(&mut input)?;
        input.finish()?;
        Ok(value)
    }
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Encoder) {
                out.put_raw(&self.to_be_bytes());
            }
            fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                let raw = input.take(size_of::<$int>())?;
                Ok(<$int>::from_be_bytes(raw.try_into().map_err(|_| DecodeError::Short)?))
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64, i64, u128);

impl Wire for () {
    fn put(&self, _: &mut Encoder) {}
    fn get(_: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Encoder) {
        u8::from(*self).put(out);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match u8::get(input)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::Tag { what: "bool", tag }),
        }
    }
}

impl Wire for String {
    fn put(&self, out: &mut Encoder) {
        out.put_bytes(self.as_bytes());
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let bytes = input.take_bytes()?;
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError::Value("text"))
    }
}

impl Wire for Bytes {
    fn put(&self, out: &mut Encoder) {
        out.put_bytes(self);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Bytes::copy_from_slice(input.take_bytes()?))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Encoder) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        if bool::get(input)? {
            T::get(input).map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Encoder) {
        out.put_len(self.len());
        for item in self {
            item.put(out);
        }
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let len = input.take_len()?;
        // Items take at least a byte, so the input bounds the list; a list of `u8` is common and cheap enough.
        (0..len).map(|_| T::get(input)).collect()
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Encoder) {
        self.0.put(out);
        self.1.put(out);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok((A::get(input)?, B::get(input)?))
    }
}

/// Implements [`Wire`] for an existing struct, field after field in the order given.
#[macro_export]
macro_rules! wire_fields {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::Wire for $name {
            fn put(&self, out: &mut $crate::Encoder) {
                $($crate::Wire::put(&self.$field, out);)*
                let _ = out;
            }
            fn get(input: &mut $crate::Decoder<'_>) -> Result<Self, $crate::DecodeError> {
                let _ = &input;
                Ok(Self { $($field: $crate::Wire::get(input)?),* })
            }
        }
    };
}

/// Implements [`Wire`] for newtypes over an integer.
#[macro_export]
macro_rules! wire_newtypes {
    ($($name:ident),* $(,)?) => {$(
        impl $crate::Wire for $name {
            fn put(&self, out: &mut $crate::Encoder) {
                $crate::Wire::put(&self.0, out);
            }
            fn get(input: &mut $crate::Decoder<'_>) -> Result<Self, $crate::DecodeError> {
                Ok(Self($crate::Wire::get(input)?))
            }
        }
    )*};
}

/// Implements [`Wire`] for an enum whose variants have at most named fields, by explicit tags.
#[macro_export]
macro_rules! wire_enum {
    ($name:ident { $($tag:literal => $variant:ident $({ $($field:ident),* $(,)? })?),* $(,)? }) => {
        impl $crate::Wire for $name {
            fn put(&self, out: &mut $crate::Encoder) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        $crate::Wire::put(&($tag as u8), out);
                        $($($crate::Wire::put($field, out);)*)?
                    })*
                }
            }
            fn get(input: &mut $crate::Decoder<'_>) -> Result<Self, $crate::DecodeError> {
                match <u8 as $crate::Wire>::get(input)? {
                    $($tag => Ok(Self::$variant $({ $($field: $crate::Wire::get(input)?),* })?),)*
                    tag => Err($crate::DecodeError::Tag { what: stringify!($name), tag }),
                }
            }
        }
    };
}

/// Declares request types with their fields, method number and reply, and implements [`crate::Method`].
#[macro_export]
macro_rules! methods {
    ($service:expr; $($(#[$doc:meta])* $id:literal $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? } -> $reply:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Debug)]
            #[allow(missing_docs, reason = "the request's text explains its fields")]
            pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
            $crate::wire_fields!($name { $($field),* });
            impl $crate::Method for $name {
                const SERVICE: $crate::ServiceId = $service;
                const ID: u16 = $id;
                const NAME: &'static str = stringify!($name);
                type Reply = $reply;
            }
        )*
    };
}
