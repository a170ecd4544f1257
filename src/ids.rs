//! Names as types: what the operator calls listeners, pools and clouds, and the identity of an endpoint.
//! An identity outlives configs and snapshots: health and counters belong to it. A session has a handle while it lives.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc};

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

/// Where a session is carried now: `0-17-3` is worker 0, slot 17, generation 3. With an `s` before it, it is in that
/// worker's tokio half (`slow-0`). A session that changes halves gets another handle; one that has gone leaves a handle
/// that finds nobody, as the slot's next session has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionHandle {
    /// The worker's number.
    pub worker: u32,
    /// True in the worker's tokio half, false in its engine.
    pub slow: bool,
    /// The place among the sessions there.
    pub slot: u32,
    /// Which of the sessions that have had this place; never 0.
    pub generation: u32,
}

/// Not the form of a [`SessionHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a session's handle: it looks like 0-17-3 or s0-17-3")]
pub struct NotAHandle;

impl fmt::Display for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = if self.slow { "s" } else { "" };
        write!(f, "{half}{}-{}-{}", self.worker, self.slot, self.generation)
    }
}

impl FromStr for SessionHandle {
    type Err = NotAHandle;

    fn from_str(text: &str) -> Result<Self, NotAHandle> {
        let (slow, rest) = text.strip_prefix('s').map_or((false, text), |rest| (true, rest));
        let mut numbers = rest.splitn(3, '-').map(|number| {
            // `parse` would take a sign.
            let plain = number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse::<u32>().ok().filter(|_| plain).ok_or(NotAHandle)
        });
        let mut next = || numbers.next().ok_or(NotAHandle)?;
        let (worker, slot, generation) = (next()?, next()?, next()?);
        if generation == 0 {
            return Err(NotAHandle);
        }
        Ok(Self { worker, slow, slot, generation })
    }
}

/// A TLV of a PROXY header of version 2 that routes and logs know by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tlv {
    /// PP2_TYPE_AUTHORITY (0x02): the server name that the balancer before us saw.
    Authority,
    /// PP2_TYPE_ALPN (0x01).
    Alpn,
    /// PP2_TYPE_UNIQUE_ID (0x05), in hexadecimal digits where it is no text.
    UniqueId,
    /// PP2_TYPE_NETNS (0x30).
    Netns,
    /// PP2_TYPE_AWS (0xEA), subtype 1: the id of a VPC endpoint.
    AwsVpcEndpoint,
    /// PP2_TYPE_GCP (0xE0): the id of a Private Service Connect connection, a number.
    GcpPscConnection,
    /// PP2_TYPE_AZURE (0xEE), subtype 1: the link id of a private endpoint, a number.
    AzurePrivateLink,
}

impl Tlv {
    /// The word in the config and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Alpn => "alpn",
            Self::UniqueId => "unique_id",
            Self::Netns => "netns",
            Self::AwsVpcEndpoint => "aws_vpc_endpoint",
            Self::GcpPscConnection => "gcp_psc_connection",
            Self::AzurePrivateLink => "azure_private_link",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_one_word_and_leads_back() {
        for (slow, text) in [(false, "0-17-3"), (true, "s1-0-4294967295")] {
            let handle: SessionHandle = text.parse().unwrap();
            assert_eq!((handle.slow, handle.to_string().as_str()), (slow, text));
        }
        for wrong in [
            "",
            "7",
            "0-17",
            "0-17-3-1",
            "0-17-0",
            "0--3",
            "+0-1-1",
            "0-1-4294967296",
            "t0-1-1",
            "ss0-1-1",
            "0-1-1 ",
        ] {
            assert_eq!(wrong.parse::<SessionHandle>(), Err(NotAHandle), "{wrong}");
        }
    }
}
