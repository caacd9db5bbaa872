//! What lies in `deploy/`: the manifests hold together, their configurations are taken, and what the documents say of
//! the unit is so. There is no cluster here: nothing of this proves that one takes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mailkey::config::{self, Loaded};
use serde_json::Value;

use crate::proxies::corporate::must;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

/// Manifests that are applied together.
struct Set(Vec<Value>);

impl Set {
    fn read(names: &[&str]) -> Self {
        let read = |name: &&str| serde_yaml::from_multiple::<Value>(&text(name)).unwrap();
        let set = Self(names.iter().flat_map(read).collect());
        for document in &set.0 {
            let known = [
                ("v1", "ServiceAccount"),
                ("v1", "ConfigMap"),
                ("v1", "Service"),
                ("apps/v1", "Deployment"),
                ("policy/v1", "PodDisruptionBudget"),
                ("networking.k8s.io/v1", "NetworkPolicy"),
            ];
            let is = (string(document, "/apiVersion"), string(document, "/kind"));
            assert!(known.contains(&is), "{is:?}");
        }
        set
    }

    fn of(&self, kind: &'static str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |document| document["kind"] == kind)
    }

    fn one(&self, kind: &'static str, name: &str) -> &Value {
        let found = self.of(kind).find(|document| document["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} `{name}`"))
    }

    /// The workload that these labels select.
    fn selected(&self, labels: &Value) -> &Value {
        let fits = |workload: &&Value| includes(&workload["spec"]["template"]["metadata"]["labels"], labels);
        self.of("Deployment").find(fits).unwrap_or_else(|| panic!("{labels} select nothing"))
    }
}

fn string<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All of `labels`, at least one, is in `all`.
fn includes(all: &Value, labels: &Value) -> bool {
    let labels = labels.as_object().unwrap();
    !labels.is_empty() && labels.iter().all(|(key, value)| all[key] == *value)
}

/// All containers of a workload, sidecars included.
fn containers(workload: &Value) -> impl Iterator<Item = &Value> {
    let pod = &workload["spec"]["template"]["spec"];
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"]))
}

/// Name and number of every port.
fn ports(workload: &Value) -> Vec<(&str, u64)> {
    let all = containers(workload).flat_map(|container| list(&container["ports"]));
    all.map(|port| (string(port, "/name"), number(&port["containerPort"]))).collect()
}

/// What one file refers to in another, or in itself, is there.
fn assert_holds_together(set: &Set) {
    for workload in set.of("Deployment") {
        let (spec, pod) = (&workload["spec"], &workload["spec"]["template"]["spec"]);
        assert!(includes(&spec["template"]["metadata"]["labels"], &spec["selector"]["matchLabels"]));
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let mut mounted = BTreeSet::new();
        for container in containers(workload).filter(|container| container["name"] != "application") {
            let name = string(container, "/name");
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["capabilities"]["drop"][0], "ALL", "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            for probe in ["livenessProbe", "readinessProbe"] {
                let get = &container[probe]["httpGet"];
                assert!(ports(workload).iter().any(|(port, _)| get["port"] == *port), "{name}: {get}");
            }
            let mounts: Vec<_> = list(&container["volumeMounts"])
                .iter()
                .map(|mount| (string(mount, "/name"), string(mount, "/mountPath")))
                .collect();
            for (volume, place) in &mounts {
                mounted.insert(*volume);
                // a mount inside a read-only one cannot be made
                let inside = |(_, other): &(&str, &str)| place.starts_with(&format!("{other}/"));
                assert!(!mounts.iter().any(inside), "{place} lies inside another mount");
            }
        }
        let volumes: BTreeSet<_> =
            list(&pod["volumes"]).iter().map(|volume| string(volume, "/name")).collect();
        assert_eq!(mounted, volumes);
        for map in list(&pod["volumes"]).iter().filter_map(|volume| volume["configMap"]["name"].as_str()) {
            set.one("ConfigMap", map);
        }
        if let Some(account) = pod["serviceAccountName"].as_str() {
            set.one("ServiceAccount", account);
        }
        for spread in list(&pod["topologySpreadConstraints"]) {
            assert!(includes(&spec["selector"]["matchLabels"], &spread["labelSelector"]["matchLabels"]));
        }
    }
    for service in set.of("Service") {
        let known = ports(set.selected(&service["spec"]["selector"]));
        for port in list(&service["spec"]["ports"]) {
            assert!(known.iter().any(|(name, _)| port["targetPort"] == *name), "{port}");
        }
    }
    for policy in set.of("NetworkPolicy") {
        let known = ports(set.selected(&policy["spec"]["podSelector"]["matchLabels"]));
        for port in list(&policy["spec"]["ingress"]).iter().flat_map(|rule| list(&rule["ports"])) {
            assert!(known.iter().any(|(_, number)| port["port"] == *number), "{port}");
        }
    }
}

/// The configuration of a workload is taken, with files where the pod would have them, and fits the pod.
fn assert_configuration_fits(set: &Set, workload: &str) -> Loaded {
    let workload = set.one("Deployment", workload);
    let pod = &workload["spec"]["template"]["spec"];
    let yaml = string(set.one("ConfigMap", "mailkey"), "/data/proxy.yaml");
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["mail.contoso.com".to_owned()]).unwrap();
    let container = containers(workload).find(|container| container["name"] == "mailkey").unwrap();
    let mut here = String::new();
    for line in yaml.lines() {
        let Some((key, value)) = line.split_once("-file: ").filter(|(_, value)| value.starts_with('/'))
        else {
            writeln!(here, "{line}").unwrap();
            continue;
        };
        let value = value.split_whitespace().next().unwrap();
        // every file comes from a secret, and lies where modes are the platform's affair
        let mount = list(&container["volumeMounts"])
            .iter()
            .find(|mount| value.starts_with(&format!("{}/", string(mount, "/mountPath"))))
            .unwrap_or_else(|| panic!("nothing is mounted for {value}"));
        let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        assert!(volume["secret"].is_object() && value.starts_with("/run/secrets/"), "{value}");
        let file = folder.path().join(value.rsplit('/').next().unwrap());
        std::fs::write(
            &file,
            match file.extension().and_then(|end| end.to_str()) {
                Some("crt") => certificate.cert.pem(),
                Some("key") => certificate.signing_key.serialize_pem(),
                Some("hash") => text("proxy.yaml")
                    .lines()
                    .find_map(|line| Some(line.split_once("password-hash: ")?.1.to_owned()))
                    .unwrap(),
                _ => "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n".to_owned(),
            },
        )
        .unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        writeln!(here, "{key}-file: {}", file.display()).unwrap();
    }
    let azure = |name: &str| (name == "AZURE_FEDERATED_TOKEN_FILE").then(|| "/run/secrets/token".to_owned());
    let loaded = config::parse(&here, "proxy.yaml", folder.path(), &azure);
    let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}"));
    // the kubelet's probes come from outside the pod; the network policy keeps others away
    let expected = |what: &str| what.starts_with("the status page is open to whoever reaches");
    assert!(loaded.remarks.iter().all(|remark| expected(&remark.what)), "{:?}", loaded.remarks);

    let known = ports(workload);
    for listener in loaded.config.listeners.iter().filter(|listener| !listener.listen[0].ip().is_loopback()) {
        let port = u64::from(listener.listen[0].port());
        assert!(known.iter().any(|(_, number)| *number == port), "{} is no port of the pod", listener.name);
    }
    let admin = u64::from(loaded.config.admin.as_ref().unwrap().listen[0].port());
    assert!(known.contains(&("admin", admin)));
    let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
    let needed = pause + loaded.config.limits.drain_timeout.as_secs() + 5;
    assert!(number(&pod["terminationGracePeriodSeconds"]) >= needed, "{needed} s are needed for a drain");
    loaded
}

#[test]
fn the_sidecar_manifest_holds_together() {
    let set = Set::read(&["deploy/kubernetes/sidecar.yaml"]);
    assert_holds_together(&set);
    assert_configuration_fits(&set, "legacy-application");
}

#[test]
fn the_replica_manifests_hold_together_and_no_roll_out_leaves_a_client_without_one() {
    let set = Set::read(&["deploy/kubernetes/replicas.yaml", "deploy/kubernetes/haproxy.yaml"]);
    assert_holds_together(&set);
    let loaded = assert_configuration_fits(&set, "mailkey");
    let replicas = number(&set.one("Deployment", "mailkey")["spec"]["replicas"]);
    for name in ["mailkey", "mailkey-haproxy"] {
        let workload = set.one("Deployment", name);
        assert_eq!(workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0);
        assert!(!list(&workload["spec"]["template"]["spec"]["topologySpreadConstraints"]).is_empty());
        let budget = &set.one("PodDisruptionBudget", name)["spec"];
        assert_eq!(set.selected(&budget["selector"]["matchLabels"]), workload);
        assert!(number(&budget["minAvailable"]) < number(&workload["spec"]["replicas"]));
    }
    for listener in &loaded.config.listeners {
        assert!(!listener.proxy_protocol_from.is_empty(), "{}", listener.name);
    }
    // what Exchange Online takes of one mailbox is shared out among the replicas
    let most = config::parse(&text("proxy.yaml"), "proxy.yaml", &path(""), &|_| None);
    let most = most.map_or(3, |all| all.config.limits.smtp_sessions_per_mailbox);
    let each = loaded.config.limits.smtp_sessions_per_mailbox;
    assert!(u64::try_from(each).unwrap() * replicas <= u64::try_from(most).unwrap());

    let configuration = string(set.one("ConfigMap", "mailkey-haproxy"), "/data/haproxy.cfg");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("haproxy.cfg"), configuration).unwrap();
    must("haproxy", &["-c", "-f", folder.path().join("haproxy.cfg").to_str().unwrap()]);
    let host = "mailkey.mail.svc.cluster.local";
    for (_, port) in ports(set.one("Deployment", "mailkey")) {
        let named = configuration.contains(&format!("{host}:{port}"))
            || configuration.contains(&format!("check port {port} "));
        assert!(named, "HAProxy knows nothing of port {port}");
    }
}

#[test]
fn the_compose_file_hardens_the_container_and_gives_a_drain_its_time() {
    let compose: Value = serde_yaml::from_str(&text("deploy/compose.yaml")).unwrap();
    let service = &compose["services"]["mailkey"];
    assert_eq!(service["read_only"], true);
    assert_eq!(service["cap_drop"][0], "ALL");
    assert_eq!(service["security_opt"][0], "no-new-privileges:true");
    assert_eq!(compose["networks"]["mail"]["internal"], true);
    let grace: u64 = string(service, "/stop_grace_period").trim_end_matches('s').parse().unwrap();
    assert!(grace >= 35, "the default of limits.drain-timeout, and some seconds");
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let metrics = crate::house::sources();
    let (_, metrics) = metrics.iter().find(|(path, _)| path.ends_with("telemetry/metrics.rs")).unwrap();
    let dashboard = text("deploy/grafana.json");
    serde_json::from_str::<Value>(&dashboard).unwrap();
    let mut seen = 0;
    for part in dashboard.split("mailkey_").skip(1) {
        let name: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        let name = ["_total", "_bucket", "_sum", "_count", "_info"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(&name);
        assert!(metrics.contains(&format!("\"{name}\"")), "no metric is called mailkey_{name}");
        seen += 1;
    }
    assert!(seen > 5);
}

#[test]
fn the_documents_name_the_units_exposure_as_it_is_measured() {
    let unit = path("deploy/mailkey.service");
    let told = must("systemd-analyze", &["security", "--offline=true", "--no-pager", unit.to_str().unwrap()]);
    let (_, level) = told.split_once("Overall exposure level for mailkey.service: ").unwrap();
    let level = level.split_whitespace().next().unwrap();
    let said = format!("{level} (OK)");
    for document in ["README.md", "docs/operating.md"] {
        assert!(text(document).contains(&said), "{document} does not say {said}");
    }
}
