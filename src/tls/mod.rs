//! TLS settings made of the operator's files: certificates, keys, trust, tickets.
