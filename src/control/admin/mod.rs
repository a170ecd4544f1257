//! The admin API and the telemetry listener.
