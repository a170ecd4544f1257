//! Who exists: names in place of addresses, resolved again and again.
