//! Names as types: what the operator calls listeners, pools and clouds, and the identity of an endpoint.
//! An identity outlives configs and snapshots: health and counters belong to it.

use std::{fmt, net::SocketAddr, sync::Arc};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as the operator wrote it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self(Arc::from(name))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name! {
    /// A listener's name, unique in a config.
    ListenerName
}
name! {
    /// A pool's name, unique in a config.
    PoolName
}
name! {
    /// A cloud's name: what fails as one.
    CloudName
}

/// Which endpoint this is, whatever the config or the generation: one address in one pool.
///
/// The cloud is carried for logs and labels; [`EndpointKey`] is the part that makes the identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointIdentity {
    /// The pool it serves.
    pub pool: PoolName,
    /// The cloud it stands in.
    pub cloud: CloudName,
    /// What is dialled.
    pub address: SocketAddr,
}

impl EndpointIdentity {
    /// The key under which health and counters are kept.
    #[must_use]
    pub fn key(&self) -> EndpointKey {
        EndpointKey { pool: self.pool.clone(), address: self.address }
    }
}

impl fmt::Display for EndpointIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pool {}, cloud {})", self.address, self.pool, self.cloud)
    }
}

/// The key of an endpoint: pool and address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The pool it serves.
    pub pool: PoolName,
    /// What is dialled.
    pub address: SocketAddr,
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pool {})", self.address, self.pool)
    }
}

/// The number of a snapshot. Strictly grows while the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that follows this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
