//! What the edge knows of a session, in its line.

use std::net::SocketAddr;

use super::session_line::Value;
use crate::ids::Tlv;

/// What a client, or a balancer before us, has said of a session. Texts are escaped already: printable ASCII without quotes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    /// Who connected, where a PROXY header names another client.
    pub via: Option<SocketAddr>,
    /// What the client asked for, where that is not the listener.
    pub destination: Option<SocketAddr>,
    /// The server name.
    pub sni: Option<Box<str>>,
    /// The version of TLS with the client, where that ends here.
    pub tls: Option<&'static str>,
    /// The protocol that was agreed on.
    pub alpn: Option<Box<str>>,
    /// What the PROXY header carries of what has a name.
    pub tlvs: Vec<(Tlv, Box<str>)>,
    /// Why it was refused: a word, and a sentence.
    pub refused: Option<(&'static str, Box<str>)>,
}

impl Edge {
    /// Its fields. What strangers chose stands in quotes.
    pub(super) fn each<'a>(&'a self, mut give: impl FnMut(&'static str, Value<'a>)) {
        for (key, address) in [("via", self.via), ("destination", self.destination)] {
            address.into_iter().for_each(|address| give(key, Value::Address(address)));
        }
        for (key, text) in [("sni", &self.sni), ("alpn", &self.alpn)] {
            text.iter().for_each(|text| give(key, Value::Text(text)));
        }
        self.tls.into_iter().for_each(|version| give("tls", Value::Word(version)));
        for (tlv, text) in &self.tlvs {
            // Two keys of a line are never the same.
            let key = match tlv {
                Tlv::Alpn => "tlv_alpn",
                other => other.as_str(),
            };
            give(key, Value::Text(text));
        }
        if let Some((word, reason)) = &self.refused {
            give("refused", Value::Word(word));
            give("reason", Value::Text(reason));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::session_line;

    #[test]
    fn what_a_client_chose_stands_in_quotes_and_stays_one_line() {
        let edge = Edge {
            via: Some("10.0.0.1:7".parse().unwrap()),
            sni: Some(r"a\x0ab\x1b[31m".into()),
            tls: Some("TLSv1.3"),
            tlvs: vec![(Tlv::AwsVpcEndpoint, "vpce-1".into())],
            refused: Some(("unknown_ca", "not trusted".into())),
            ..Edge::default()
        };
        let (mut text, mut json) = (String::new(), String::from("{\"x\":1"));
        edge.each(|key, value| session_line::text(&mut text, key, value));
        edge.each(|key, value| session_line::json(&mut json, key, value));
        json.push('}');
        let expected = concat!(
            r#" via=10.0.0.1:7 sni="a\x0ab\x1b[31m" tls=TLSv1.3 aws_vpc_endpoint="vpce-1""#,
            r#" refused=unknown_ca reason="not trusted""#
        );
        assert_eq!(text, expected);
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["sni"], r"a\x0ab\x1b[31m");
        assert_eq!(read["reason"], "not trusted");
    }
}
