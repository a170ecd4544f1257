//! Identities and trust from a SPIFFE Workload API, in a build that has one, and the words of a build that has none.

#[cfg(feature = "spiffe")]
mod agent;
#[cfg(feature = "spiffe")]
mod workloads;

use crate::harness::{binary, built_here, run};

#[tokio::test]
async fn a_build_without_the_workload_api_says_how_to_get_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("twinspan.toml");
    std::fs::write(
        &config,
        "version = 1\n[cloud.a]\n[spiffe]\nsocket = \"unix:///nowhere/api.sock\"\n[[pool]]\nname = \"p\"\n\
         health.tcp = {}\nendpoint = [{ address = \"192.0.2.1:1\", cloud = \"a\" }]\n\
         [[listener]]\nbind = \"127.0.0.1:20000\"\npool = \"p\"\ntls = { spiffe = true }\n",
    )
    .unwrap();
    // Another binary than this build's own is the release build, which has no features.
    for (program, has) in [
        (built_here(), cfg!(feature = "spiffe")),
        (binary(), binary() == built_here() && cfg!(feature = "spiffe")),
    ] {
        for verb in ["check", "run"] {
            if verb == "run" && has {
                continue;
            }
            let flags = if verb == "run" { vec![verb, "-c"] } else { vec![verb] };
            let arguments: Vec<_> =
                flags.into_iter().map(Into::into).chain([config.clone().into_os_string()]).collect();
            let output = run(&program, &arguments).await;
            if has {
                assert_eq!(output.code, Some(0), "{output:?}");
                assert!(output.stderr.contains("/nowhere/api.sock is not here"), "{output:?}");
                continue;
            }
            assert_eq!(output.code, Some(78), "{output:?}");
            for words in [
                "this build has no SPIFFE Workload API",
                "build with `--features spiffe`",
                "twinspan.toml:3:1",
            ] {
                assert!(output.stderr.contains(words), "{words}: {output:?}");
            }
        }
    }
}
