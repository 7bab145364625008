//! How an enumeration of the wire and its number are turned into each other, in one place.

use core::{error, fmt};

/// A number from the wire that the specification gives no meaning in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnknownValue {
    /// What the number should have been, for people: "zone state", "request type", ...
    pub what: &'static str,
    /// The number found.
    pub value: u32,
}

impl fmt::Display for UnknownValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a known {}", self.value, self.what)
    }
}

impl error::Error for UnknownValue {}

/// Defines an enumeration with its numbers on the wire, `TryFrom` the number and `From` the enumeration, and `ALL`.
macro_rules! wire_enum {
    (
        $(#[$attr:meta])*
        pub enum $name:ident: $int:ident as $what:literal {
            $( $(#[$variant_attr:meta])* $variant:ident = $value:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr($int)]
        pub enum $name {
            $( $(#[$variant_attr])* $variant = $value, )*
        }

        impl $name {
            /// Every value there is, in the order of the numbers.
            pub const ALL: &[Self] = &[ $( Self::$variant, )* ];
        }

        impl TryFrom<$int> for $name {
            type Error = $crate::UnknownValue;

            fn try_from(value: $int) -> Result<Self, Self::Error> {
                match value {
                    $( $value => Ok(Self::$variant), )*
                    _ => Err($crate::UnknownValue { what: $what, value: value.into() }),
                }
            }
        }

        impl From<$name> for $int {
            fn from(value: $name) -> Self {
                match value {
                    $( $name::$variant => $value, )*
                }
            }
        }
    };
}

pub(crate) use wire_enum;
