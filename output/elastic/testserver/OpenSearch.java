import org.codelibs.opensearch.runner.OpenSearchRunner;

/** Runs one OpenSearch node on loopback until it is killed: java OpenSearch.java DIRECTORY HTTP-PORT. */
public class OpenSearch {
    public static void main(String[] args) throws Exception {
        OpenSearchRunner runner = new OpenSearchRunner();
        // The runner accepts ports up to 9299 only, unless this is set.
        runner.setMaxHttpPort(-1);
        runner.onBuild((number, settings) -> {
            settings.put("network.host", "127.0.0.1");
            settings.put("discovery.type", "single-node");
            // A nearly full disk of the machine must not fail a test.
            settings.put("cluster.routing.allocation.disk.threshold_enabled", "false");
        });
        // It counts nodes from 1 and adds the number to the port.
        runner.build(OpenSearchRunner.newConfigs().basePath(args[0]).clusterName("iotrace-test").numOfNode(1)
                .baseHttpPort(Integer.parseInt(args[1]) - 1));
        Thread.currentThread().join();
    }
}
